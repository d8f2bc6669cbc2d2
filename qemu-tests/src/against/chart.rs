//! The comparison as a picture: a pair of bars for each row, in SVG.

use std::fmt::Write;

use super::measured::Measured;
use super::rows::{ROWS, Row, Verdict};

const ROW_HEIGHT: usize = 26;
const BAR_HEIGHT: usize = 10;
const TOP: usize = 46;
const LEFT: usize = 190;
const WIDTH: usize = 900;
/// Of the longest bar.
const LONGEST: usize = WIDTH - LEFT - 90;

const OURS: &str = "#2b6cb0";
const MISSED: &str = "#c53030";
const XENS: &str = "#a0aec0";

/// Draws it. Lengths are proportional to counts.
pub fn draw(ours: &Measured, xen: &Measured, title: &str) -> String {
    let height = TOP + ROWS.len() * ROW_HEIGHT + 10;
    let counts = ROWS.iter().flat_map(|row| {
        let both = [ours.count(row.name), xen.count(row.name)];
        both.into_iter().flatten()
    });
    let largest = counts.max().unwrap_or(1).max(1);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"18\" font-size=\"14\">{}</text>\n\
         <text x=\"10\" y=\"36\" fill=\"{OURS}\">microvisor</text>\n\
         <text x=\"80\" y=\"36\" fill=\"{MISSED}\">microvisor, goal missed</text>\n\
         <text x=\"220\" y=\"36\" fill=\"{XENS}\">Xen</text>\n",
        escaped(title)
    );
    for (index, row) in ROWS.iter().enumerate() {
        let y = TOP + index * ROW_HEIGHT;
        let colour = match row.verdict(ours, xen) {
            Verdict::Met => OURS,
            Verdict::Missed(_) | Verdict::Unknown => MISSED,
        };
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 8,
            y + 15,
            row.name
        );
        bar(&mut out, ours, row, y, largest, colour);
        bar(&mut out, xen, row, y + BAR_HEIGHT + 1, largest, XENS);
    }
    out.push_str("</svg>\n");
    out
}

fn bar(out: &mut String, measured: &Measured, row: &Row, y: usize, largest: u64, colour: &str) {
    let count = measured.count(row.name);
    let length = count.map_or(0, |count| {
        // Below 2^53, and a picture.
        (count as f64 / largest as f64 * LONGEST as f64).ceil() as usize
    });
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>\
         <text x=\"{}\" y=\"{}\" font-size=\"9\">{}</text>",
        LEFT + length + 4,
        y + BAR_HEIGHT - 1,
        escaped(&measured.shown(row.name))
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_two_bars_and_text_is_escaped() {
        let measured =
            Measured::read("compare: row cpuid median 10 minimum 10\ncompare: none rdmsr a<b\n");
        let drawn = draw(&measured, &Measured::default(), "a & b");
        assert_eq!(drawn.matches("<rect").count(), 1 + 2 * ROWS.len());
        assert!(drawn.contains("a &amp; b") && drawn.contains("a&lt;b"));
    }
}
