"""What is published: its verdicts over time, how it is replaced, how it is held against runs made here, and README."""
