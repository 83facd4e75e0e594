"What the soak is made of: children, worlds, commands, situations and their kinds."
