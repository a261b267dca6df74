"""How the members' predictions become one: blend, calibrate, decide."""
