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

const WIDTH: usize = 260;
const HEAD: usize = 26;
const LINE: usize = 18;
const GAP: usize = 16;
const COLUMN: usize = 400;
const MARGIN: usize = 20;

/// Where a box is, and how many rights are listed in it.
#[derive(Clone, Copy, Debug)]
struct Place {
    column: usize,
    y: usize,
    lines: usize,
}

impl Place {
    fn x(self) -> usize {
        MARGIN + self.column * COLUMN
    }

    fn height(self) -> usize {
        HEAD + self.lines * LINE
    }

    /// The middle of the line of a right.
    fn line(self, index: usize) -> usize {
        self.y + HEAD + index * LINE + LINE / 2
    }
}

/// The graph as an SVG picture: a box for each thing, its rights listed in it, and an arrow from
/// each right to what it is to.
pub fn svg(graph: &Graph) -> String {
    let mut bottoms = [MARGIN; 3];
    let mut places: Vec<Place> = Vec::new();
    for (index, thing) in graph.things.iter().enumerate() {
        let column = match thing {
            Thing::Component { guest: Some(_), .. } => 0,
            Thing::Component { .. } => 1,
            _ => 2,
        };
        let place = Place {
            column,
            y: bottoms[column],
            lines: graph.held(index).count(),
        };
        bottoms[column] += place.height() + GAP;
        places.push(place);
    }
    let width = 2 * MARGIN + 2 * COLUMN + WIDTH;
    let height = bottoms.into_iter().max().unwrap_or(0) + MARGIN - GAP.min(MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <defs><marker id=\"tip\" markerWidth=\"8\" markerHeight=\"8\" refX=\"7\" refY=\"4\" \
         orient=\"auto\"><path d=\"M0,0 L8,4 L0,8 z\"/></marker></defs>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (index, (thing, place)) in graph.things.iter().zip(&places).enumerate() {
        boxed(&mut out, thing, *place);
        for (line, right) in graph.held(index).enumerate() {
            let y = place.line(line);
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{}\" font-size=\"11\">{}</text>",
                place.x() + 10,
                y + 4,
                escape_xml(&right.does)
            );
            if let Some(to) = places.get(right.to) {
                arrow(&mut out, *place, y, *to, right.call);
            }
        }
    }
    out + "</svg>\n"
}

fn boxed(out: &mut String, thing: &Thing, place: Place) {
    let (round, fill) = match thing {
        Thing::Component { .. } => (8, "#e8f0fe"),
        Thing::GuestMemory { .. } | Thing::Vcpus { .. } => (0, "#fce8e6"),
        _ => (0, "#f1f3f4"),
    };
    let _ = writeln!(
        out,
        "<rect x=\"{}\" y=\"{}\" width=\"{WIDTH}\" height=\"{}\" rx=\"{round}\" fill=\"{fill}\" \
         stroke=\"black\"/>\n<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" \
         font-weight=\"bold\">{}</text>",
        place.x(),
        place.y,
        place.height(),
        place.x() + WIDTH / 2,
        place.y + 17,
        escape_xml(&thing.to_string())
    );
}

fn arrow(out: &mut String, from: Place, y0: usize, to: Place, call: bool) {
    let dash = if call {
        " stroke-dasharray=\"5,3\""
    } else {
        ""
    };
    let (start, y1) = (from.x() + WIDTH, to.y + HEAD / 2);
    // To a box of the same column, the arrow goes around on the right.
    let (end, first, second) = if to.column > from.column {
        let bend = (to.x() - start) / 2;
        (to.x(), start + bend, to.x() - bend)
    } else {
        let end = to.x() + WIDTH;
        (end, start.max(end) + 70, end + 70)
    };
    let _ = writeln!(
        out,
        "<path d=\"M{start},{y0} C{first},{y0} {second},{y1} {end},{y1}\" fill=\"none\" \
         stroke=\"#555\"{dash} marker-end=\"url(#tip)\"/>"
    );
}
