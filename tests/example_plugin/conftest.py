"""These tests are the plugin's own: they run where it is installed, and are passed over in the checkout of mhe."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("mhe_example") else ["test_contracts.py"]
