"""What the steps of the wizard decide and find out: plain classes that call the verbs, tested with numbers. No widgets."""
