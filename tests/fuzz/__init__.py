"""Seeded mutations of valid requests against a really started server: ``make fuzz``. CONTRIBUTING.md says how."""
