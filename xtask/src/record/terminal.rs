//! Interprets a program's output as a terminal does, and returns lines of coloured text. It handles what the
//! session uses: line breaks, carriage returns, and the sequences SGR and EL (ECMA-48, 8.3.117 and 8.3.41);
//! other control sequences are dropped.

/// The style of a piece of text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) bold: bool,
    /// A colour of the terminal, from 0 to 15; `None` is its default.
    pub(super) colour: Option<u8>,
}

/// A line on the screen: a style and a character for each column.
pub(super) type Line = Vec<(Style, char)>;

/// Returns the lines that `output` leaves on a terminal with this many columns.
pub(super) fn lines(output: &str, columns: usize) -> Vec<Line> {
    let mut screen =
        Screen { columns, lines: Vec::new(), line: Line::new(), column: 0, style: Style::default() };
    let mut rest = output.chars();
    while let Some(character) = rest.next() {
        match character {
            '\x1b' => screen.control_sequence(&mut rest),
            '\n' => screen.next_line(),
            '\r' => screen.column = 0,
            _ if character.is_control() => {}
            _ => screen.put(character),
        }
    }
    if !screen.line.is_empty() {
        screen.next_line();
    }
    screen.lines
}

struct Screen {
    columns: usize,
    /// The lines above the current one.
    lines: Vec<Line>,
    line: Line,
    column: usize,
    style: Style,
}

impl Screen {
    fn put(&mut self, character: char) {
        if self.column == self.columns {
            self.next_line();
        }
        match self.line.get_mut(self.column) {
            Some(cell) => *cell = (self.style, character),
            None => self.line.push((self.style, character)),
        }
        self.column += 1;
    }

    fn next_line(&mut self) {
        self.lines.push(std::mem::take(&mut self.line));
        self.column = 0;
    }

    /// Interprets a sequence up to its final byte. `CSI ... m` sets colours, `CSI K` erases to the end of the
    /// line.
    fn control_sequence(&mut self, rest: &mut impl Iterator<Item = char>) {
        if rest.next() != Some('[') {
            return;
        }
        let mut parameters = String::new();
        for character in rest {
            match character {
                'm' => return parameters.split(';').for_each(|parameter| select(&mut self.style, parameter)),
                'K' if parameters.is_empty() => return self.line.truncate(self.column),
                '\x40'..='\x7e' => return,
                _ => parameters.push(character),
            }
        }
    }
}

fn select(style: &mut Style, parameter: &str) {
    match parameter.parse().unwrap_or(0) {
        0 => *style = Style::default(),
        1 => style.bold = true,
        22 => style.bold = false,
        code @ 30..=37 => style.colour = Some(code - 30),
        39 => style.colour = None,
        code @ 90..=97 => style.colour = Some(code - 90 + 8),
        _ => {}
    }
}

/// Returns the text of a line without its colours.
#[cfg(test)]
pub(super) fn text(line: &Line) -> String {
    line.iter().map(|(_, character)| character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_at_line_ends_and_at_the_last_column() {
        let text: Vec<_> = lines("ab\r\n\r\nabcdef\r\n", 4).iter().map(text).collect();
        assert_eq!(text, ["ab", "", "abcd", "ef"]);
    }

    #[test]
    fn progress_is_written_over_and_erased() {
        let shown = lines("preparing: 2 s\x1b[K\rpreparing: 3 s\x1b[K\r\x1b[Kdone\r\nabc\rx\r\n", 80);
        assert_eq!(shown.iter().map(text).collect::<Vec<_>>(), ["done", "xbc"]);
    }

    #[test]
    fn colours_and_bold_are_kept_and_other_sequences_dropped() {
        let shown = lines("\x1b[2J\x1b[1;32m$\x1b[0m \x1b[91mx\x1b[39my", 80);
        let green = Style { bold: true, colour: Some(2) };
        let red = Style { bold: false, colour: Some(9) };
        let plain = Style::default();
        assert_eq!(shown, [[(green, '$'), (plain, ' '), (red, 'x'), (plain, 'y')]]);
    }
}
