"""What both papers do with a finished model, on any `Decoder`: where outliers are, what they do, what undoes them.

Numbers only: one long table (`outliers.analysis.numbers`). Definitions, sources and rules: docs/analysis.md.
"""
