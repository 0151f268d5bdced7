"""What the tests of degradation share: fixtures and helpers."""

NAMES = ("resshift", "resshift_second_order")
