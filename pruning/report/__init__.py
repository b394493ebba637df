"""Tables, plots and paired tests of finished runs."""
