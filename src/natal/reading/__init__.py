"""What it means: results, statistics, claims, figures and reports. No torch here."""
