//! The loss of a frozen decoder with adapters, its gradient by the adapters, and products of its Hessian with a vector, each
//! written out by hand instead of being recorded and played back.
//!
//! libtorch's double backward computes all of this too (`crate::autograd`), for any choice of tensors that learn. Where
//! only the adapters do, much of what it computes is not needed: gradients of what lies below the first adapter, copies
//! of [N, V] matrices in the loss, graphs. What is needed is three walks over the blocks:
//!
//! 1. forward, which keeps of each block what the walk back needs (`block::Tape`);
//! 2. backward, which keeps the adjoint at each matrix product (`block::Adjoint`) where a Hessian product follows;
//! 3. the tangents of both in the direction u (forward over reverse: Pearlmutter 1994, equation 5): the derivative of walk
//!    1, then of walk 2, along Φ + ε u. The tangent of ∇L is H u. It costs as much as the two walks themselves.
//!
//! Notation throughout, with x a value: x̄ is its adjoint ∂L/∂x, ẋ its tangent dx/dε, and `x_bar`, `x_dot`, `x_bar_dot`
//! their names; N = B · T rows, D the width, F the MLP's, R the bottleneck's, H heads of dh values (G of keys and values), V tokens. Everything
//! is exact, in the kind of the tensors, and made of libtorch's operators, on whatever device the tensors are.

mod adapter;
mod attention;
mod block;
mod gelu;
mod head;
mod mlp;
mod norm;
mod product;
mod stem;

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use marionette_models::params::names;
use marionette_models::{ModelConfig, Positions};
use tch::{Tensor, no_grad};

pub(crate) use self::head::ROWS;

use self::block::{Adjoint, Block, Tangent, Tape};
use self::head::Head;
use self::stem::Stem;
use crate::error::Result;
use crate::frozen::Weight;
use crate::model::Model;
use crate::tensors::{self, TokenBatch};

/// Tensors of one block: those of the adapter after attention and of the one after the MLP, four each.
const LEARNED: usize = 8;

/// The derivatives of a model of which exactly the adapters learn.
pub(crate) struct Engine<'a> {
    wte: Weight,
    wpe: Option<Tensor>,
    /// The blocks without adapters, below all others.
    below: Vec<Block>,
    /// Those with adapters.
    blocks: Vec<Block>,
    head: Head,
    config: ModelConfig,
    /// What of each batch does not depend on the adapters.
    stems: RefCell<Vec<(&'a TokenBatch, Rc<Stem>)>>,
}

/// The walk forward and the walk back at some Φ, kept.
pub(crate) struct Recorded {
    loss: f64,
    stem: Rc<Stem>,
    at: Vec<Tensor>,
    head: head::Tape,
    blocks: Vec<(Tape, Adjoint)>,
}

/// What makes it cheaper to record a step that was done before: with the adjoint of the head's normalised input, [N, D],
/// the head's walk back falls away; with a trace of each block two thirds of the other products.
pub(crate) struct Trace {
    head: Tensor,
    blocks: Vec<block::Trace>,
}

impl Trace {
    /// Moves what outlives the step into one block of memory.
    fn settle(&mut self) -> Result<()> {
        let mut places: Vec<&mut Tensor> = self.blocks.iter_mut().flat_map(block::Trace::tensors).collect();
        places.push(&mut self.head);
        let copies = tensors::together(&places.iter().map(|tensor| tensor.shallow_clone()).collect::<Vec<_>>())?;
        for (place, copy) in places.into_iter().zip(copies) {
            *place = copy;
        }
        Ok(())
    }
}

impl<'a> Engine<'a> {
    /// The engine for a model, where there is one: exactly the adapters learn, and products are computed in the kind of
    /// the tensors.
    ///
    /// # Errors
    /// A tensor is missing; what libtorch says.
    pub(crate) fn new(model: &Model) -> Result<Option<Self>> {
        if !model.learns_exactly_adapters() {
            return Ok(None);
        }
        let config = model.config();
        let wte = model.frozen_weight(names::WTE)?;
        let head = if config.tied { wte.handle() } else { model.frozen_weight(names::HEAD)? };
        let first = model.first_adapted().unwrap_or(config.n_layer);
        let blocks = |layers: Range<usize>| layers.map(|layer| Block::new(model, layer)).collect::<Result<Vec<_>>>();
        Ok(Some(Self {
            wpe: match config.positions {
                Positions::Learned => Some(model.frozen(names::WPE)?),
                Positions::Rotary { .. } => None,
            },
            below: blocks(0..first)?,
            blocks: blocks(first..config.n_layer)?,
            head: Head::new(head, norm::Norm::new(model, &names::last_norm(), config)?),
            wte,
            config: config.clone(),
            stems: RefCell::default(),
        }))
    }

    /// What of a batch does not depend on the adapters, computed once.
    fn stem(&self, batch: &'a TokenBatch) -> Result<Rc<Stem>> {
        let mut stems = self.stems.borrow_mut();
        if let Some((_, stem)) = stems.iter().find(|(known, _)| std::ptr::eq(*known, batch)) {
            return Ok(stem.clone());
        }
        let blocks = (&self.below[..], self.blocks.first());
        let stem = Rc::new(Stem::new(batch, &self.config, &self.wte, self.wpe.as_ref(), blocks)?);
        stems.push((batch, stem.clone()));
        Ok(stem)
    }

    /// Walk 1: the residual stream after the last block, and each block's tape.
    fn forward(&self, stem: &Stem, at: &[Tensor], traces: &[block::Trace]) -> Result<(Tensor, Vec<Tape>)> {
        let mut tapes = Vec::with_capacity(self.blocks.len());
        let mut x = stem.x.shallow_clone();
        for (place, (block, learned)) in self.blocks.iter().zip(at.chunks_exact(LEARNED)).enumerate() {
            let (out, tape) = block.forward(&x, stem, learned, place == 0, traces.get(place))?;
            x = out;
            tapes.push(tape);
        }
        Ok((x, tapes))
    }

    /// Walk 2 from the adjoint of what walk 1 gave: `take` gets each block's tape and adjoint, from the last to the first.
    fn backward(
        &self,
        stem: &Stem,
        at: &[Tensor],
        (mut tapes, mut traces): (Vec<Tape>, Vec<block::Trace>),
        x_bar: Tensor,
        mut take: impl FnMut(Tape, Adjoint) -> Result<()>,
    ) -> Result<()> {
        let mut x_bar = Some(x_bar);
        for (block, learned) in self.blocks.iter().zip(at.chunks_exact(LEARNED)).rev() {
            let (Some(tape), Some(out_bar)) = (tapes.pop(), x_bar.take()) else { break };
            let (below, adjoint) = block.backward(&tape, stem, learned, out_bar, traces.pop())?;
            x_bar = below;
            take(tape, adjoint)?;
        }
        Ok(())
    }

    /// The loss, its gradient and a trace: with one of each block where `detailed`.
    fn first_order(&self, at: &[Tensor], batch: &'a TokenBatch, detailed: bool) -> Result<(f64, Vec<Tensor>, Trace)> {
        let stem = self.stem(batch)?;
        let (x, tapes) = self.forward(&stem, at, &[])?;
        let (loss, head) = self.head.gradient(&x, batch, false)?;
        let x_bar = self.head.backward(&head, batch, x.size())?;
        drop(x);
        let (mut gradient, mut blocks) = (Vec::with_capacity(at.len()), Vec::new());
        self.backward(&stem, at, (tapes, Vec::new()), x_bar, |tape, adjoint| {
            gradient.push(adjoint.gradient(&tape)?);
            if detailed {
                blocks.push(block::Trace::new(&tape, &adjoint));
            }
            Ok(())
        })?;
        blocks.reverse();
        Ok((loss, gradient.into_iter().rev().flatten().collect(), Trace { head: head.into_adjoint(), blocks }))
    }

    /// Walks 1 and 2, kept; p too where `keep`.
    fn record(&self, at: &[Tensor], batch: &'a TokenBatch, trace: Option<Trace>, keep: bool) -> Result<Recorded> {
        let stem = self.stem(batch)?;
        let (known, traces) = trace.map_or((None, Vec::new()), |trace| (Some(trace.head), trace.blocks));
        let (x, tapes) = self.forward(&stem, at, &traces)?;
        let (loss, head) = match known {
            None => self.head.gradient(&x, batch, keep)?,
            Some(adjoint) => (f64::NAN, self.head.again(&x, batch, adjoint)?),
        };
        let x_bar = self.head.backward(&head, batch, x.size())?;
        let mut blocks = Vec::with_capacity(tapes.len());
        self.backward(&stem, at, (tapes, traces), x_bar, |tape, adjoint| {
            blocks.push((tape, adjoint));
            Ok(())
        })?;
        blocks.reverse();
        Ok(Recorded { loss, stem, at: at.iter().map(Tensor::shallow_clone).collect(), head, blocks })
    }
}

/// What [`crate::derivative`] asks for.
impl<'a> Engine<'a> {
    /// The loss at Φ: walk 1, of which nothing is kept.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn loss(&self, at: &[Tensor], batch: &'a TokenBatch) -> Result<f64> {
        no_grad(|| {
            let stem = self.stem(batch)?;
            let mut x = stem.x.shallow_clone();
            for (place, (block, learned)) in self.blocks.iter().zip(at.chunks_exact(LEARNED)).enumerate() {
                (x, _) = block.forward(&x, &stem, learned, place == 0, None)?;
            }
            self.head.loss(&x, batch)
        })
    }

    /// The loss at Φ, and its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn gradient(&self, at: &[Tensor], batch: &'a TokenBatch) -> Result<(f64, Vec<Tensor>)> {
        no_grad(|| {
            let (loss, gradient, _) = self.first_order(at, batch, false)?;
            // The query's outlives its step.
            Ok((loss, tensors::together(&gradient)?))
        })
    }

    /// The same with a trace, which is small unless it is to be `detailed`.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn traced(
        &self,
        at: &[Tensor],
        batch: &'a TokenBatch,
        detailed: bool,
    ) -> Result<(f64, Vec<Tensor>, Trace)> {
        no_grad(|| {
            let (loss, gradient, mut trace) = self.first_order(at, batch, detailed)?;
            trace.settle()?;
            Ok((loss, gradient, trace))
        })
    }

    /// Walks 1 and 2. Where the step is not `alone`, it leaves as much memory as a detailed trace needs.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn curved(&self, at: &[Tensor], batch: &'a TokenBatch, alone: bool) -> Result<Recorded> {
        no_grad(|| self.record(at, batch, None, alone))
    }

    /// The same of a step that left a trace; the loss is not a number then.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn again(&self, at: &[Tensor], batch: &'a TokenBatch, trace: Trace) -> Result<Recorded> {
        no_grad(|| self.record(at, batch, Some(trace), false))
    }

    /// Walk 3: H u, with H the Hessian of the loss where `recorded` is.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn times(&self, recorded: Recorded, u: &[Tensor], batch: &'a TokenBatch) -> Result<Vec<Tensor>> {
        no_grad(|| {
            let Recorded { stem, at, head, mut blocks, .. } = recorded;
            let learned = || at.chunks_exact(LEARNED).zip(u.chunks_exact(LEARNED));
            let mut tangents: Vec<Tangent> = Vec::with_capacity(blocks.len());
            // Nothing below the first adapter depends on Φ.
            let mut x_dot = None;
            for ((block, (tape, _)), (at, u)) in self.blocks.iter().zip(&blocks).zip(learned()) {
                let (out, tangent) = block.tangent(tape, &stem, x_dot.take(), at, u)?;
                x_dot = Some(out);
                tangents.push(tangent);
            }
            let mut x_bar_dot = match x_dot {
                Some(x_dot) => Some(self.head.tangent_backward(head, batch, &x_dot)?),
                None => None,
            };
            let mut product = Vec::with_capacity(at.len());
            for (block, (at, u)) in self.blocks.iter().zip(learned()).rev() {
                let (Some((tape, adjoint)), Some(tangent), Some(out)) =
                    (blocks.pop(), tangents.pop(), x_bar_dot.take())
                else {
                    break;
                };
                let (below, gradient_dot) = block.tangent_backward((&tape, &adjoint, &tangent), &stem, at, u, &out)?;
                x_bar_dot = below;
                product.push(gradient_dot);
            }
            Ok(product.into_iter().rev().flatten().collect())
        })
    }
}

impl Recorded {
    /// The loss.
    pub(crate) fn loss(&self) -> f64 {
        self.loss
    }

    /// Its gradient.
    ///
    /// # Errors
    /// What libtorch says.
    pub(crate) fn gradient(&self) -> Result<Vec<Tensor>> {
        let mut gradient = Vec::with_capacity(self.at.len());
        for (tape, adjoint) in &self.blocks {
            gradient.extend(no_grad(|| adjoint.gradient(tape))?);
        }
        Ok(gradient)
    }
}
