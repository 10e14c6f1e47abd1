"""What people see and type into: pages, the demo, later the wizard. Calls the rooms below and holds no logic of theirs."""
