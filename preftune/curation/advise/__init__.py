"""`preftune advise`: which method fits the data and the means at hand, why, and a recipe that runs as it is."""
