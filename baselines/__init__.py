"""Published systems as policies, with their published tables: DiffServe, NIRVANA, AccuScale/Argus and others."""
