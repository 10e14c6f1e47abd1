"""The views of the wizard, one file for each step: widgets bound to the decisions of `utils.ui.decisions`."""
