"""What shows a run or a model on one page."""
