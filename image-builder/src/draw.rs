//! Pictures of an audit's graph: DOT for Graphviz, and SVG with a layout of our own, so that no
//! program is needed to see it: three columns, from what is there for a guest over what is there
//! for all to what is reached.

use std::fmt::Write;

use crate::audit::{Graph, Thing};

/// The graph in Graphviz's language.
pub fn dot(graph: &Graph) -> String {
    let mut out = String::from("digraph rights {\n    rankdir=LR;\n    node [shape=box];\n");
    for (index, thing) in graph.things.iter().enumerate() {
        let style = match thing {
            Thing::Component { .. } => "style=rounded",
            Thing::GuestMemory { .. } | Thing::Vcpus { .. } => "shape=box3d",
            _ => "shape=note",
        };
        let label = escape_dot(&thing.to_string());
        // Writing to a string cannot fail.
        let _ = writeln!(out, "    n{index} [label=\"{label}\", {style}];");
    }
    for right in &graph.rights {
        let does = escape_dot(&right.does);
        let style = if right.call { ", style=dashed" } else { "" };
        let _ = writeln!(
            out,
            "    n{} -> n{} [label=\"{does}\"{style}];",
            right.from, right.to
        );
    }
    out + "}\n"
}

fn escape_dot(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const WIDTH: usize = 250;
const HEIGHT: usize = 30;
const ROW: usize = 56;
const COLUMN: usize = 430;
const MARGIN: usize = 20;

/// Where a box is.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    column: usize,
    row: usize,
}

impl Place {
    fn x(self) -> usize {
        MARGIN + self.column * COLUMN
    }

    fn y(self) -> usize {
        MARGIN + self.row * ROW
    }

    fn middle(self) -> usize {
        self.y() + HEIGHT / 2
    }
}

/// The graph as an SVG picture.
pub fn svg(graph: &Graph) -> String {
    let mut rows = [0; 3];
    let places: Vec<Place> = graph
        .things
        .iter()
        .map(|thing| {
            let column = match thing {
                Thing::Component { guest: Some(_), .. } => 0,
                Thing::Component { .. } => 1,
                _ => 2,
            };
            let row = rows[column];
            rows[column] += 1;
            Place { column, row }
        })
        .collect();
    let width = 2 * MARGIN + 2 * COLUMN + WIDTH;
    let height = 2 * MARGIN + rows.into_iter().max().unwrap_or(0).max(1) * ROW;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <defs><marker id=\"tip\" markerWidth=\"8\" markerHeight=\"8\" refX=\"7\" refY=\"4\" \
         orient=\"auto\"><path d=\"M0,0 L8,4 L0,8 z\"/></marker></defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for right in &graph.rights {
        let (Some(from), Some(to)) = (places.get(right.from), places.get(right.to)) else {
            continue;
        };
        arrow(&mut out, *from, *to, &right.does, right.call);
    }
    for (thing, place) in graph.things.iter().zip(&places) {
        let (round, fill) = match thing {
            Thing::Component { .. } => (8, "#e8f0fe"),
            Thing::GuestMemory { .. } | Thing::Vcpus { .. } => (0, "#fce8e6"),
            _ => (0, "#f1f3f4"),
        };
        let _ = writeln!(
            out,
            "<rect x=\"{}\" y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"{round}\" \
             fill=\"{fill}\" stroke=\"black\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            place.x(),
            place.y(),
            place.x() + WIDTH / 2,
            place.middle() + 4,
            escape_xml(&thing.to_string())
        );
    }
    out + "</svg>\n"
}

fn arrow(out: &mut String, from: Place, to: Place, does: &str, call: bool) {
    let dash = if call {
        " stroke-dasharray=\"5,3\""
    } else {
        ""
    };
    let (start, y0, y1) = (from.x() + WIDTH, from.middle(), to.middle());
    // Within a column the arrow leaves and arrives on the right.
    let (end, bend) = if to.column > from.column {
        (to.x(), (to.x() - start) / 2)
    } else {
        (to.x() + WIDTH, 70 + 6 * from.row)
    };
    let second = if to.column > from.column {
        end - bend
    } else {
        end + bend
    };
    let first = start + bend;
    let _ = writeln!(
        out,
        "<path d=\"M{start},{y0} C{first},{y0} {second},{y1} {end},{y1}\" fill=\"none\" \
         stroke=\"#555\"{dash} marker-end=\"url(#tip)\"><title>{}</title></path>",
        escape_xml(does)
    );
    // Beside the start, where arrows are apart from those of other boxes.
    let (x, y) = ((start * 3 + first) / 4, (y0 * 5 + y1) / 6);
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" font-size=\"9\" fill=\"#333\">{}</text>",
        escape_xml(does)
    );
}
