"""The paper's data sets, from the publishers' archives to the layout that the package reads."""
