//! The table of a comparison: a row for each figure, a column for each monitor. The first column is Coracle,
//! with which the others are compared; the second is the floor.

use std::fmt;

/// A value, or the reason why there is none.
pub(super) type Cell = Result<f64, &'static str>;

/// A table of Coracle, the floor and the peers.
pub(super) struct Table {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<Row>,
}

pub(super) struct Row {
    pub(super) name: String,
    pub(super) better: Better,
    pub(super) values: Vec<Cell>,
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

    pub(super) fn row(&mut self, name: &str, better: Better, values: impl Iterator<Item = Cell>) {
        self.rows.push(Row { name: name.to_owned(), better, values: values.collect() });
    }

    /// Returns the cells of all lines, the heading first, with a column for the ratio to the floor.
    fn lines(&self) -> Vec<Vec<String>> {
        let (ours, others) = self.columns.split_at(1.min(self.columns.len()));
        let heading = [&[String::new()], ours, &["/ floor".to_owned()], others].concat();
        std::iter::once(heading).chain(self.rows.iter().map(Row::cells)).collect()
    }
}

impl Row {
    /// Returns how many times as good the first column is as the column at `index`, if both have values.
    pub(super) fn ratio(&self, index: usize) -> Option<f64> {
        let value = |index: usize| self.values.get(index).and_then(|cell| cell.ok());
        let (ours, theirs) = (value(0)?, value(index)?);
        let ratio = match self.better {
            Better::Less => theirs / ours,
            Better::More => ours / theirs,
        };
        // Nothing is not so many times as good as something.
        (ours > 0.0 && theirs > 0.0).then_some(ratio)
    }

    /// Returns the row's name where the row above it is not in sight.
    pub(super) fn title(&self, table: &Table) -> String {
        let Some(rest) = self.name.strip_prefix(SAME) else { return self.name.clone() };
        let above = table.rows.iter().take_while(|row| !std::ptr::eq(*row, self));
        let above = above.filter(|row| !row.name.starts_with(SAME)).last();
        format!("{} ({})", above.map_or("", |row| &row.name), rest.trim_start())
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.name.clone()];
        for (index, cell) in self.values.iter().enumerate() {
            cells.push(match (cell, self.ratio(index)) {
                (Err(why), _) => (*why).to_owned(),
                (Ok(value), Some(ratio)) if index >= PEERS => format!("{} ({ratio:.2}x)", shown(*value)),
                (Ok(value), _) => shown(*value),
            });
            if index == 0 {
                cells.push(self.ratio(FLOOR).map_or("-".to_owned(), |ratio| format!("{:.2}", 1.0 / ratio)));
            }
        }
        cells
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let width = |index: usize| {
            let cells = lines.iter().filter_map(|line| line.get(index));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        for line in &lines {
            for (index, cell) in line.iter().enumerate() {
                match index {
                    0 => write!(f, "{cell:width$}", width = width(0))?,
                    _ => write!(f, "  {cell:>width$}", width = width(index))?,
                }
            }
            writeln!(f)?;
        }
        write!(
            f,
            "\n/ floor: Coracle's time or memory divided by the floor's; for lives a second, the floor's divided by \
             Coracle's.\nIn brackets: how many times as good as this peer Coracle is; below 1.00 it loses."
        )
    }
}

/// Returns the value with three digits or more.
pub(super) fn shown(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The beginning of the name of a row that differs little from the one above.
const SAME: &str = "  the same,";

/// The index of the floor's column, and the first of the peers'.
pub(super) const FLOOR: usize = 1;
pub(super) const PEERS: usize = 2;

#[cfg(test)]
pub(in crate::bench) mod tests {
    use super::*;

    /// A table of two rows, in which one peer is missing.
    pub(crate) fn sample() -> Table {
        let mut table = Table::new(["ours", "floor", "peer", "other"].into_iter().map(str::to_owned));
        table.row("time", Better::Less, [Ok(2.0), Ok(1.6), Ok(3.0), Err("not here")].into_iter());
        table.row("speed", Better::More, [Ok(200.0), Ok(250.0), Ok(400.0), Err("not here")].into_iter());
        table.row("disk", Better::Less, [Ok(12.5), Err("-"), Ok(25.0), Err("not here")].into_iter());
        table.row("none", Better::Less, [Ok(0.0), Ok(44.0), Ok(9.0), Err("not here")].into_iter());
        table
    }

    #[test]
    fn ratios_are_to_the_floor_and_to_the_peers() {
        let cells: Vec<Vec<String>> = sample().lines();
        assert_eq!(
            cells,
            [
                ["", "ours", "/ floor", "floor", "peer", "other"],
                ["time", "2.00", "1.25", "1.60", "3.00 (1.50x)", "not here"],
                ["speed", "200", "1.25", "250", "400 (0.50x)", "not here"],
                ["disk", "12.5", "-", "-", "25.0 (2.00x)", "not here"],
                ["none", "0.00", "-", "44.0", "9.00", "not here"],
            ]
        );
    }

    #[test]
    fn every_column_is_as_wide_as_its_widest_cell() {
        let text = sample().to_string();
        let lines: Vec<&str> = text.lines().take(4).collect();
        assert_eq!(
            lines,
            [
                "       ours  / floor  floor          peer     other",
                "time   2.00     1.25   1.60  3.00 (1.50x)  not here",
                "speed   200     1.25    250   400 (0.50x)  not here",
                "disk   12.5        -      -  25.0 (2.00x)  not here",
            ]
        );
    }
}
