//! Host tests: a guest of a few pages whose hypercalls are driven directly.

mod event;
mod fifo;
mod foreign;
mod fuzz;
mod grant;
mod grant_model;
mod grant_v2;
mod harness;
mod hvm;
mod memory_op;
mod model;
mod multicall;
mod refusals;
mod sched;
mod table;
mod time;
mod vcpu;
mod version;
