"""Leaderboards: folders of published runs, and the page that is made from them.

folders      where boards lie, `board.yaml` read with lines and written without losing comments
entries      run.json and scores.jsonl.gz of one entry
pinning      what a board pins of a task, taken from the task or from a run
acceptance   the rules of entry
publishing   entries written, board.yaml extended
statistics_of_entries → results   recomputed values, intervals and paired tests
ranking      places that a test can tell apart
pareto       quality against cost
markdown     text that cannot break the page
rendering    README.md, drawings and the index
checking     is the page what the entries make, and is everything still there
"""
