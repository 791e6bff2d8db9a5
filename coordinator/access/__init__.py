"""Who may do what: members and their states, sessions, tokens, the judge of every call and the table of all methods."""
