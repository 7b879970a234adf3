"""Audits that come with natal: papers' claims, one TOML file each."""
