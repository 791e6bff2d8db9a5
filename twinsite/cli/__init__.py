"""`twinsite NOUN VERB`: one module per noun. Talks to the admin API and holds no rule of it."""
