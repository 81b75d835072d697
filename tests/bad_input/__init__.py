"""Bad input of every stage, and what is said to it: the cases of test_bad_input.py and of docs/bad-input.md."""
