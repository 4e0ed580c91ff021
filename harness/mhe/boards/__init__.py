"""Leaderboards: folders of published runs, and the page that is made from them.

folders       where boards lie; `board.yaml` read with lines, and written without losing comments
entries       `run.json` and `scores.jsonl.gz` of one entry
run_scores    the statistics of a run folder, as an entry keeps them
verification  do the statistics make the published values
pinning       what a board pins of a task, taken from the task or from a run
acceptance    the rules of entry
publishing    entries written, board.yaml extended
ranking       places that a paired test supports
results       values over seeds with intervals, places, cost
pareto        quality against cost, drawn
markdown      text that cannot break the page
tables        the part of the page about one task
rendering     the page and the index
history       what the last commit published
checking      build, and prove
"""
