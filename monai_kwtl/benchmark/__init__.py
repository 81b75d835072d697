"""The paper's protocol as a grid of cells: leave one data set out, select, label by oracle, tune, measure."""
