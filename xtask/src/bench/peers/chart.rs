//! Draws the comparison as an SVG picture (SVG 1.1): a panel for each figure, a bar for each monitor that was
//! measured. The picture has a background of its own, so that it is legible on light and dark pages, and no
//! script and no external resources.

use std::fmt::Write;

use super::table::{Better, FLOOR, Row, Table, shown};
use super::{bare, io};
use crate::record::escaped;

/// Draws the panels of those figures that the table has. The same table gives the same bytes.
pub(super) fn draw(table: &Table, host: &str) -> String {
    let panels: Vec<&Row> =
        FIGURES.iter().filter_map(|name| table.rows.iter().find(|row| row.name == *name)).collect();
    let pair_height = |pair: &[&Row]| {
        let bars = pair.iter().map(|row| measured(table, row).count()).max().unwrap_or_default();
        HEADING + bars * BAR_STEP + GAP
    };
    let height = TOP + panels.chunks(2).map(pair_height).sum::<usize>() + FOOT;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>Coracle and its peers, measured in one run</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"{FONTS}\" font-size=\"13\" fill=\"{TEXT}\">\n\
         <text x=\"{MARGIN}\" y=\"34\" font-size=\"18\" font-weight=\"bold\">Coracle and its peers, in one run</text>\n\
         <text x=\"{MARGIN}\" y=\"56\" fill=\"{DIM}\">The floor is the bare calls of KVM, without a monitor. Shorter \
         bars are better, unless a heading says otherwise.</text>\n\
         <text x=\"{MARGIN}\" y=\"74\" fill=\"{DIM}\">In brackets: how many times as good as this peer Coracle \
         is; below 1 it loses.</text>\n"
    );
    let mut y = TOP;
    for pair in panels.chunks(2) {
        for (row, x) in pair.iter().zip([MARGIN, PANEL + 2 * MARGIN]) {
            panel(&mut picture, table, row, x, y);
        }
        y += pair_height(pair);
    }
    let _ = writeln!(
        picture,
        "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"11\" fill=\"{DIM}\">{}{}</text>\n</g>\n</svg>",
        height - 16,
        escaped(host),
        escaped(&absent(table, &panels))
    );
    picture
}

/// Draws a figure's heading and bars.
fn panel(picture: &mut String, table: &Table, row: &Row, x: usize, y: usize) {
    let note = if row.better == Better::More { " (longer is better)" } else { "" };
    let _ = writeln!(
        picture,
        "<text x=\"{x}\" y=\"{}\" font-weight=\"bold\">{}{note}</text>",
        y + 13,
        escaped(&row.name)
    );
    let longest = measured(table, row).map(|(_, _, value)| value).fold(f64::MIN_POSITIVE, f64::max);
    for (line, (index, column, value)) in measured(table, row).enumerate() {
        let top = y + HEADING + line * BAR_STEP;
        let baseline = top + BAR - 2;
        // A bar that is too short to see would look like a missing one.
        let length = (value / longest * BARS as f64).max(2.0);
        let colour = match index {
            0 => OURS,
            FLOOR => FLOOR_BAR,
            _ => PEER,
        };
        let ratio = match row.ratio(index) {
            // One decimal would show a narrow loss as a draw.
            Some(ratio) if index > FLOOR && ratio < 2.0 => format!(" ({ratio:.2}x)"),
            Some(ratio) if index > FLOOR => format!(" ({ratio:.1}x)"),
            _ => String::new(),
        };
        let _ = writeln!(
            picture,
            "<text x=\"{x}\" y=\"{baseline}\">{}</text>\
             <rect x=\"{}\" y=\"{top}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{baseline}\">{}{ratio}</text>",
            escaped(column),
            x + NAMES,
            (x + NAMES) as f64 + length + 6.0,
            shown(value),
        );
    }
}

/// Returns the names of the monitors that have no bar in any panel, as the end of the last line.
fn absent(table: &Table, panels: &[&Row]) -> String {
    let has_bar = |index: usize| panels.iter().any(|row| matches!(row.values.get(index), Some(Ok(_))));
    let columns = table.columns.iter().enumerate();
    let names: Vec<&str> =
        columns.filter(|(index, _)| !has_bar(*index)).map(|(_, name)| name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!(". Not measured: {}", names.join(", ")) }
}

/// Returns the columns of a row that have a value: index, name, value.
fn measured<'a>(table: &'a Table, row: &'a Row) -> impl Iterator<Item = (usize, &'a str, f64)> {
    let columns = table.columns.iter().zip(&row.values).enumerate();
    columns.filter_map(|(index, (name, cell))| Some((index, name.as_str(), (*cell).ok()?)))
}

/// The figures of the picture, in reading order: of a disk and of a network card also those in which polling
/// does not help.
const FIGURES: [&str; 10] = [
    bare::FIRST_BYTE,
    bare::CPU_TIME,
    bare::LIVES_A_SECOND,
    bare::SERIAL,
    bare::PRIVATE_DIRTY,
    bare::CROWD_PSS,
    io::READ_1,
    io::READ_1_ASLEEP,
    io::SEND,
    io::RECEIVE,
];

const WIDTH: usize = 2 * PANEL + 3 * MARGIN;
const MARGIN: usize = 24;
const PANEL: usize = 390;
/// The room for the names of monitors, left of the bars.
const NAMES: usize = 120;
/// The length of the longest bar; the value has the rest of the panel.
const BARS: usize = 170;
const TOP: usize = 96;
const HEADING: usize = 22;
const BAR: usize = 14;
const BAR_STEP: usize = 20;
const GAP: usize = 18;
const FOOT: usize = 30;
const FONTS: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
const BACKGROUND: &str = "#1b1f27";
const TEXT: &str = "#d8dee9";
const DIM: &str = "#9aa5b8";
const OURS: &str = "#8fc379";
const FLOOR_BAR: &str = "#7b88a1";
const PEER: &str = "#61afef";

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["ours", "floor", "a & b", "gone"].into_iter().map(str::to_owned));
        table.row(bare::FIRST_BYTE, Better::Less, [Ok(2.0), Ok(1.0), Ok(8.0), Err("not here")].into_iter());
        table.row(io::SEND, Better::More, [Ok(1.5), Err("-"), Ok(1.0), Err("not here")].into_iter());
        table
    }

    #[test]
    fn bars_are_as_long_as_the_values_and_absent_monitors_have_none() {
        let picture = draw(&table(), "a <host>");
        for part in
            ["width=\"42.5\"", "width=\"21.2\"", "width=\"170.0\"", "a &amp; b", "a &lt;host>", "8.00 (4.0x)"]
        {
            let part = part.replace("host>", "host&gt;");
            assert!(picture.contains(&part), "{part} is missing in {picture}");
        }
        assert_eq!(picture.matches("gone").count(), 1, "{picture}");
        assert!(
            picture.contains("&gt;. Not measured: gone</text>") && !picture.contains("<script"),
            "{picture}"
        );
        assert_eq!(picture.matches("(longer is better)").count(), 1);
        assert_eq!(picture, draw(&table(), "a <host>"));
    }

    #[test]
    fn every_element_is_closed() {
        let picture = draw(&table(), "host");
        for name in ["svg", "g", "text", "title"] {
            let opened =
                picture.matches(&format!("<{name} ")).count() + picture.matches(&format!("<{name}>")).count();
            assert!(opened > 0 && opened == picture.matches(&format!("</{name}>")).count(), "{name}");
        }
        assert_eq!(picture.matches("<rect ").count(), picture.matches("/>").count());
    }
}
