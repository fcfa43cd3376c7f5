//! The table of a comparison: a row for each figure, a column for each monitor, ratios to the first column.

use std::fmt;

/// A table whose first column is the one that the others are compared with.
pub(super) struct Table {
    columns: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    better: Better,
    /// Empty where a monitor was not measured.
    values: Vec<Option<f64>>,
}

/// The values of a row that are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Better {
    Less,
    More,
}

impl Table {
    pub(super) fn new(columns: impl Iterator<Item = String>) -> Table {
        Table { columns: columns.collect(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, name: &str, better: Better, values: impl Iterator<Item = Option<f64>>) {
        self.rows.push(Row { name: name.to_owned(), better, values: values.collect() });
    }
}

impl Row {
    /// Returns the cell of a column: the value, and how many times as good the first column's is.
    fn cell(&self, index: usize) -> String {
        let ours = self.values.first().copied().flatten();
        match (index, self.values.get(index).copied().flatten(), ours) {
            (_, None, _) => "not here".to_owned(),
            (0, Some(value), _) | (_, Some(value), None) => shown(value),
            (_, Some(value), Some(ours)) => {
                let ratio = match self.better {
                    Better::Less => value / ours,
                    Better::More => ours / value,
                };
                format!("{} ({ratio:.2}x)", shown(value))
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:32}", "")?;
        for column in &self.columns {
            write!(f, "{column:>19}")?;
        }
        for row in &self.rows {
            write!(f, "\n{:32}", row.name)?;
            for index in 0..self.columns.len() {
                write!(f, "{:>19}", row.cell(index))?;
            }
        }
        write!(
            f,
            "\n\nIn brackets: how many times as good Coracle is in the same run; below 1.00 it is behind."
        )
    }
}

/// Returns the value with three digits or more.
fn shown(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_say_how_many_times_as_good_the_first_column_is() {
        let mut table = Table::new(["a", "b", "c"].into_iter().map(str::to_owned));
        table.row("time", Better::Less, [Some(2.0), Some(3.0), None].into_iter());
        table.row("speed", Better::More, [Some(200.0), Some(400.0), Some(100.0)].into_iter());
        let cells: Vec<Vec<String>> =
            table.rows.iter().map(|row| (0..3).map(|index| row.cell(index)).collect()).collect();
        assert_eq!(cells, [["2.00", "3.00 (1.50x)", "not here"], ["200", "400 (0.50x)", "100 (2.00x)"]]);
    }
}
