"""The paper's tables and figures: what it reports, and runs beside it."""
