//! Makes mutants of a source file: all of them in one text, each behind `crate::planted::mutant(N)`.
//! Pure: text in, text and list out. Called by the parent module, which builds and runs the result.
//!
//! What a mutant is: an operator that is another one, a negation or a condition turned round, a step
//! left out, a function that answers at once. Constants, patterns and what stands in macros are left
//! as they are, and so is what only tests or a debugger run.

use anyhow::{Context, Result};
use proc_macro2::Span;
use quote::{ToTokens, quote};
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{BinOp, Block, Expr, ReturnType, Stmt, Type, UnOp, parse_quote};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// What the environment's `MUTANT` says to choose it.
    pub number: u32,
    /// The file, without its folder.
    pub file: String,
    /// Line of the source, from 1.
    pub line: usize,
    /// The function it is in.
    pub function: String,
    /// What is changed into what.
    pub what: String,
}

/// A file with all its mutants.
#[derive(Debug)]
pub struct Mutated {
    /// The text: what the file says where no mutant is chosen.
    pub text: String,
    /// The mutants in it.
    pub mutants: Vec<Mutant>,
}

/// Mutates a file. Numbers begin at `first`; those in `without` are counted and left out.
pub fn mutate(file: &str, text: &str, first: u32, without: &[u32]) -> Result<Mutated> {
    let mut parsed = syn::parse_file(text).with_context(|| format!("{file} is no Rust"))?;
    // The copy has the environment to ask.
    parsed.attrs.retain(|a| !a.path().is_ident("cfg_attr"));
    let mut maker = Maker {
        file,
        next: first,
        without,
        function: Vec::new(),
        mutants: Vec::new(),
    };
    maker.visit_file_mut(&mut parsed);
    let mutants = maker.mutants;
    Ok(Mutated {
        text: parsed.into_token_stream().to_string(),
        mutants,
    })
}

struct Maker<'a> {
    file: &'a str,
    next: u32,
    without: &'a [u32],
    function: Vec<String>,
    mutants: Vec<Mutant>,
}

impl Maker<'_> {
    /// The expression that is true if this mutant is chosen; `None` if it is left out.
    fn mutant(&mut self, at: Span, what: String) -> Option<Expr> {
        let number = self.next;
        self.next += 1;
        if self.without.contains(&number) || self.function.is_empty() {
            return None;
        }
        self.mutants.push(Mutant {
            number,
            file: self.file.to_owned(),
            line: at.start().line,
            function: self.function.join("::"),
            what,
        });
        Some(parse_quote!(crate::planted::mutant(#number)))
    }

    /// A function: what it answers, then what it does.
    fn function(
        &mut self,
        signature: &syn::Signature,
        attributes: &[syn::Attribute],
        body: &mut Block,
    ) {
        let of_tests = attributes.iter().any(|a| {
            let text = a.to_token_stream().to_string();
            text.contains("cfg (test)") || text.contains("cfg (debug_assertions)")
        });
        let name = signature.ident.to_string();
        if signature.constness.is_some() || of_tests || name == "fmt" {
            return;
        }
        self.function.push(name);
        visit_mut::visit_block_mut(self, body);
        for value in answers(&signature.output).into_iter().rev() {
            let what = format!("the function answers {}", value.to_token_stream());
            if let Some(chosen) = self.mutant(signature.ident.span(), what) {
                body.stmts
                    .insert(0, parse_quote!(if #chosen { return #value; }));
            }
        }
        self.function.pop();
    }

    fn binary(&mut self, expr: &mut Expr) {
        let Expr::Binary(whole) = &*expr else { return };
        if lets(expr) {
            return visit_mut::visit_expr_mut(self, expr);
        }
        let (plain, at) = (whole.clone(), whole.op.span());
        visit_mut::visit_expr_mut(self, expr);
        for other in others(&plain.op) {
            let mut changed = plain.clone();
            changed.op = other;
            let what = format!(
                "{} for {}",
                changed.op.to_token_stream(),
                plain.op.to_token_stream()
            );
            if let Some(chosen) = self.mutant(at, what) {
                let before = expr.clone();
                *expr = parse_quote!((if #chosen { #changed } else { #before }));
            }
        }
    }

    /// A condition that is a call or a name: turned round.
    fn condition(&mut self, condition: &mut Expr) {
        let simple = matches!(
            condition,
            Expr::Call(_) | Expr::MethodCall(_) | Expr::Path(_) | Expr::Field(_)
        );
        let at = condition.span();
        self.visit_expr_mut(condition);
        if simple && let Some(chosen) = self.mutant(at, "the condition turned round".into()) {
            let before = condition.clone();
            *condition = parse_quote!((#chosen != (#before)));
        }
    }
}

impl VisitMut for Maker<'_> {
    fn visit_item_fn_mut(&mut self, item: &mut syn::ItemFn) {
        self.function(&item.sig, &item.attrs, &mut item.block);
    }

    fn visit_impl_item_fn_mut(&mut self, item: &mut syn::ImplItemFn) {
        self.function(&item.sig, &item.attrs, &mut item.block);
    }

    fn visit_trait_item_fn_mut(&mut self, item: &mut syn::TraitItemFn) {
        if let Some(body) = &mut item.default {
            self.function(&item.sig, &item.attrs, body);
        }
    }

    // What must be constant, and patterns.
    fn visit_item_const_mut(&mut self, _: &mut syn::ItemConst) {}
    fn visit_item_static_mut(&mut self, _: &mut syn::ItemStatic) {}
    fn visit_impl_item_const_mut(&mut self, _: &mut syn::ImplItemConst) {}
    fn visit_trait_item_const_mut(&mut self, _: &mut syn::TraitItemConst) {}
    fn visit_expr_const_mut(&mut self, _: &mut syn::ExprConst) {}
    fn visit_expr_repeat_mut(&mut self, _: &mut syn::ExprRepeat) {}
    fn visit_type_mut(&mut self, _: &mut Type) {}
    fn visit_generic_argument_mut(&mut self, _: &mut syn::GenericArgument) {}
    fn visit_pat_mut(&mut self, _: &mut syn::Pat) {}
    fn visit_variant_mut(&mut self, _: &mut syn::Variant) {}
    fn visit_attribute_mut(&mut self, _: &mut syn::Attribute) {}

    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        match expr {
            Expr::Binary(_) => self.binary(expr),
            Expr::If(branch) => {
                self.condition(&mut branch.cond);
                self.visit_block_mut(&mut branch.then_branch);
                if let Some((_, other)) = &mut branch.else_branch {
                    self.visit_expr_mut(other);
                }
            }
            Expr::While(again) => {
                self.visit_expr_mut(&mut again.cond);
                self.visit_block_mut(&mut again.body);
            }
            Expr::Match(choice) if is_planted(&choice.expr) => {
                for arm in choice.arms.iter_mut().filter(|arm| !says_true(&arm.pat)) {
                    self.visit_expr_mut(&mut arm.body);
                }
            }
            Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_)) => {
                let (plain, at) = (unary.expr.clone(), unary.span());
                visit_mut::visit_expr_mut(self, expr);
                if let Some(chosen) = self.mutant(at, "a negation left out".into()) {
                    let before = expr.clone();
                    *expr = parse_quote!((if #chosen { #plain } else { #before }));
                }
            }
            _ => visit_mut::visit_expr_mut(self, expr),
        }
    }

    /// Steps that can be left out: calls for what they do, and stores into what is there.
    fn visit_stmt_mut(&mut self, statement: &mut Stmt) {
        let Stmt::Expr(expr, Some(_)) = statement else {
            return visit_mut::visit_stmt_mut(self, statement);
        };
        let at = expr.span();
        let inner = match &*expr {
            Expr::Try(tried) => &*tried.expr,
            expr => expr,
        };
        let step = match inner {
            Expr::Call(_) | Expr::MethodCall(_) => true,
            Expr::Assign(assign) => !matches!(*assign.left, Expr::Path(_) | Expr::Infer(_)),
            Expr::Binary(binary) => is_store(&binary.op),
            _ => false,
        };
        let left_out = format!("left out: {}", short(&expr.to_token_stream().to_string()));
        self.visit_expr_mut(expr);
        if step && let Some(chosen) = self.mutant(at, left_out) {
            let before = expr.clone();
            *statement = parse_quote!(if !#chosen { #before; });
        }
    }
}

/// The number of the mutant that stands last before a place of a mutated text.
pub fn before(text: &str, place: usize) -> Option<u32> {
    let mark = "planted :: mutant (";
    let rest = text.get(..place)?.rsplit_once(mark)?.1;
    let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit());
    digits.into_iter().next()?.parse().ok()
}

/// At most sixty characters.
fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// True if a condition binds names: what it says has then one form only.
fn lets(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(binary) => lets(&binary.left) || lets(&binary.right),
        _ => false,
    }
}

/// True if this asks whether a fault is planted or a check is off: where it is, nothing is to be tried.
fn is_planted(asked: &Expr) -> bool {
    matches!(asked, Expr::Macro(asked) if asked.mac.path.is_ident("cfg"))
}

fn says_true(pattern: &syn::Pat) -> bool {
    pattern.to_token_stream().to_string() == "true"
}

fn is_store(op: &BinOp) -> bool {
    use BinOp::*;
    matches!(
        op,
        AddAssign(_)
            | SubAssign(_)
            | MulAssign(_)
            | BitAndAssign(_)
            | BitOrAssign(_)
            | BitXorAssign(_)
            | ShlAssign(_)
            | ShrAssign(_)
    )
}

/// What may stand for an operator.
fn others(op: &BinOp) -> Vec<BinOp> {
    use BinOp::*;
    match op {
        Eq(_) => vec![parse_quote!(!=)],
        Ne(_) => vec![parse_quote!(==)],
        Lt(_) => vec![parse_quote!(<=), parse_quote!(>)],
        Le(_) => vec![parse_quote!(<), parse_quote!(>)],
        Gt(_) => vec![parse_quote!(>=), parse_quote!(<)],
        Ge(_) => vec![parse_quote!(>), parse_quote!(<)],
        And(_) => vec![parse_quote!(||)],
        Or(_) => vec![parse_quote!(&&)],
        Add(_) => vec![parse_quote!(-)],
        Sub(_) => vec![parse_quote!(+)],
        Mul(_) | Rem(_) => vec![parse_quote!(/)],
        Div(_) => vec![parse_quote!(*)],
        Shl(_) => vec![parse_quote!(>>)],
        Shr(_) => vec![parse_quote!(<<)],
        BitAnd(_) => vec![parse_quote!(|)],
        BitOr(_) | BitXor(_) => vec![parse_quote!(&)],
        AddAssign(_) => vec![parse_quote!(-=)],
        SubAssign(_) => vec![parse_quote!(+=)],
        BitAndAssign(_) => vec![parse_quote!(|=)],
        BitOrAssign(_) => vec![parse_quote!(&=)],
        _ => Vec::new(),
    }
}

/// What a function of this type may answer without looking.
fn answers(output: &ReturnType) -> Vec<Expr> {
    let ReturnType::Type(_, output) = output else {
        return vec![parse_quote!(())];
    };
    values(output)
}

fn values(of: &Type) -> Vec<Expr> {
    let text = quote!(#of).to_string().replace(' ', "");
    let last = |text: &str, wrap: &str| -> Vec<Expr> {
        let inner = match text {
            "()" => vec!["()"],
            "bool" => vec!["true", "false"],
            "u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64" => vec!["0", "1"],
            "[u64;6]" => vec!["[0; 6]"],
            _ => Vec::new(),
        };
        let whole = inner.into_iter().map(|v| wrap.replace('_', v));
        whole.filter_map(|v| syn::parse_str(&v).ok()).collect()
    };
    if text.starts_with("Option<") {
        return vec![parse_quote!(None)];
    }
    match text.strip_prefix("Result<").and_then(|t| t.split_once(',')) {
        Some((inner, _)) => last(inner, "Ok(_)"),
        None => last(&text, "_"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Mutated {
        mutate("a.rs", text, 5, &[]).expect("Rust")
    }

    fn kinds(text: &str) -> Vec<String> {
        let mutants = all(text).mutants;
        mutants.into_iter().map(|m| m.what).collect()
    }

    #[test]
    fn every_kind_of_change_is_made() {
        let text = "fn f(a: u64) -> bool { go(); if ready() { x.y = 1; } !(a < 2) }";
        let mut made = kinds(text);
        made.sort();
        let wanted = [
            "<= for <",
            "> for <",
            "a negation left out",
            "left out: go ()",
            "left out: x . y = 1",
            "the condition turned round",
            "the function answers false",
            "the function answers true",
        ];
        assert_eq!(made, wanted);
    }

    #[test]
    fn constants_patterns_and_bindings_stay() {
        assert!(kinds("const A: u64 = 1 + 2; const fn f() -> u64 { 1 + 2 }").is_empty());
        assert!(kinds("fn f() -> [u8; 1 + 2] { [0; 1 + 2] }").is_empty());
        let text =
            "fn f() -> X { if let Some(a) = b && c { d } else { match e { 1..=2 => g, _ => h } } }";
        assert!(kinds(text).is_empty());
    }

    #[test]
    fn what_is_planted_stays() {
        let text =
            "fn f(a: X) -> X { match cfg!(planted = \"b\") { true => a + c, false => a - c } }";
        assert_eq!(kinds(text), ["+ for -"]);
    }

    #[test]
    fn the_mutant_before_a_place_is_found() {
        let made = all("fn f(a: X, b: X) -> X { a + b }");
        assert_eq!(made.mutants.len(), 1);
        let place = made.text.find("else").expect("two branches");
        assert_eq!(before(&made.text, place), Some(5));
        assert_eq!(before(&made.text, 3), None);
    }

    #[test]
    fn numbers_stay_when_one_is_left_out() {
        let text = "fn f(a: X, b: X) -> X { a + b - c }";
        let (with, without) = (all(text), mutate("a.rs", text, 5, &[5]).expect("Rust"));
        assert_eq!(with.mutants[1..], without.mutants[..]);
        assert!(syn::parse_file(&with.text).is_ok());
    }
}
