"""Where the coordinator's state lives: engine, transactions, migrations. No SQL of any domain."""
