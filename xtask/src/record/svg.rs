//! Draws the lines of a terminal as an SVG picture (SVG 1.1) with text that can be selected and searched, and
//! without external resources.

use std::fmt::Write;

use super::terminal::{Line, Style};

/// Draws the lines for a terminal with this many columns. The same lines give the same bytes.
pub(super) fn draw(lines: &[Line], columns: usize) -> String {
    let width = 2 * MARGIN + (columns * CELL_TENTHS).div_ceil(10);
    let height = 2 * MARGIN + lines.len() * LINE_HEIGHT;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"{FONTS}\" font-size=\"{FONT_SIZE}\" fill=\"{FOREGROUND}\" xml:space=\"preserve\">\n"
    );
    for (index, line) in lines.iter().enumerate() {
        let baseline = MARGIN + index * LINE_HEIGHT + FONT_SIZE;
        let _ = write!(picture, "<text x=\"{MARGIN}\" y=\"{baseline}\">");
        for cells in line.chunk_by(|(left, _), (right, _)| left == right) {
            span(&mut picture, cells);
        }
        picture.push_str("</text>\n");
    }
    picture.push_str("</g>\n</svg>\n");
    picture
}

/// Writes consecutive cells of one style.
fn span(picture: &mut String, cells: &[(Style, char)]) {
    let style = cells.first().map(|(style, _)| *style).unwrap_or_default();
    let text = escaped(&cells.iter().map(|(_, character)| character).collect::<String>());
    let colour = style.colour.and_then(|index| PALETTE.get(usize::from(index)));
    if !style.bold && colour.is_none() {
        picture.push_str(&text);
        return;
    }
    let fill = colour.map_or_else(String::new, |colour| format!(" fill=\"{colour}\""));
    let weight = if style.bold { " font-weight=\"bold\"" } else { "" };
    let _ = write!(picture, "<tspan{fill}{weight}>{text}</tspan>");
}

/// Returns the text as it is written in SVG.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const MARGIN: usize = 16;
const FONT_SIZE: usize = 14;
const LINE_HEIGHT: usize = 20;
/// The width of a character, in tenths: in most monospaced fonts it is 0.6 of the size.
const CELL_TENTHS: usize = 6 * FONT_SIZE;
const FONTS: &str = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
const BACKGROUND: &str = "#1b1f27";
const FOREGROUND: &str = "#d8dee9";
/// The 16 colours of a terminal, legible on the background.
const PALETTE: [&str; 16] = [
    "#4c566a", "#e06c75", "#8fc379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9", //
    "#6b7689", "#ff7b86", "#a5d990", "#f5d08b", "#7cc0ff", "#d992ee", "#6fcbd6", "#ffffff",
];

#[cfg(test)]
mod tests {
    use super::super::terminal::lines;
    use super::*;

    #[test]
    fn text_is_escaped_and_coloured_and_the_picture_has_room_for_it() {
        let picture = draw(&lines("\x1b[1;32m$\x1b[0m a < b & c > d\r\nend\r\n", 100), 100);
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"), "{picture}");
        assert!(picture.contains("width=\"872\" height=\"72\""), "{picture}");
        let line = "<tspan fill=\"#8fc379\" font-weight=\"bold\">$</tspan> a &lt; b &amp; c &gt; d</text>";
        assert!(picture.contains(line), "{picture}");
        assert!(picture.contains("y=\"50\">end</text>"), "{picture}");
    }
}
