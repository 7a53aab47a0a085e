"""The report: sentences, figures, and the page made of them."""
