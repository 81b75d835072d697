"""Bad input of every stage: the cases of test_bad_input.py."""
