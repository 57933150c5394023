"""How the losses are computed. Users import from the modules above; nothing here is a contract."""
