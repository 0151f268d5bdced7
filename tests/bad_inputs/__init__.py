"""Cases of bad and odd inputs, by kind; `tests/test_bad_inputs.py` runs them."""

# each registers its cases when it is imported; the table has them in this order
MODULES = (
    "users_files", "silence", "bad_files", "yaml_and_flags", "paths_and_models", "going_on", "metrics_and_names", "odd_names",
    "restoring", "sharing_and_levers",
)  # fmt: skip
