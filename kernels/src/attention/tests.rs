use super::*;
use crate::Failure;
use crate::shapes::Attended;

/// What a test computes in f64, from the definition: softmax(q Kᵀ / √dh) V over what a token sees.
struct Reference {
    y: Vec<f64>,
    log_sum: Vec<f64>,
}

fn attention(qkv: &[f64], branch: Option<&[i64]>, tokens: usize, all: Heads) -> Reference {
    let Heads { queries: heads, shared, width: head_dim } = all;
    let width = all.output();
    let (mut y, mut log_sum) = (vec![0.0; tokens * width], vec![0.0; heads * tokens]);
    let at = |part: usize, token: usize, head: usize| {
        let place = [head, heads + head * shared / heads, heads + shared + head * shared / heads][part];
        &qkv[token * all.all() + place * head_dim..][..head_dim]
    };
    for head in 0..heads {
        for j in 0..tokens {
            let sees = |i: &usize| branch.is_none_or(|branch| branch[*i] == 0 || branch[*i] == branch[j]);
            let seen: Vec<usize> = (0..=j).filter(sees).collect();
            let score = |i: usize| {
                let dot: f64 = at(0, j, head).iter().zip(at(1, i, head)).map(|(q, k)| q * k).sum();
                (dot / (head_dim as f64).sqrt()).exp()
            };
            let sum: f64 = seen.iter().map(|&i| score(i)).sum();
            log_sum[head * tokens + j] = sum.ln();
            for &i in &seen {
                for (y, v) in y[j * width + head * head_dim..].iter_mut().zip(at(2, i, head)) {
                    *y += score(i) / sum * v;
                }
            }
        }
    }
    Reference { y, log_sum }
}

fn values(len: usize, seed: usize) -> Vec<f64> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2027) as f64 / 1013.0 - 1.0).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// Slices of one head, a token each.
fn slices_of(values: &mut [f32], stride: usize, first: usize, len: usize) -> Vec<&mut [f32]> {
    values.chunks_mut(stride).map(|row| &mut row[first..first + len]).collect()
}

/// Lengths on both sides of the blocks' and tiles' edges, heads narrower and wider than a strip, apart and shared.
const SHAPES: [(usize, Heads); 8] = [
    (1, heads(1, 1, 8)),
    (7, heads(2, 2, 16)),
    (32, heads(1, 1, 32)),
    (33, heads(2, 2, 40)),
    (71, heads(1, 1, 64)),
    (9, heads(3, 3, 5)),
    (33, heads(4, 2, 16)),
    (10, heads(6, 2, 40)),
];

/// All of them, or those for which Miri takes seconds.
fn shapes() -> impl Iterator<Item = (usize, Heads)> {
    SHAPES.into_iter().filter(|(tokens, _)| !cfg!(miri) || *tokens < 10)
}

const fn heads(queries: usize, shared: usize, width: usize) -> Heads {
    Heads { queries, shared, width }
}

/// Each token's branch: a trunk of a third, then three branches.
fn branches(tokens: usize) -> Vec<i64> {
    (0..tokens).map(|i| if 3 * i < tokens { 0 } else { (i % 3) as i64 + 1 }).collect()
}

#[test]
fn forward_is_the_definition() {
    for shape @ (tokens, heads) in shapes() {
        let (width, head_dim) = (heads.output(), heads.width);
        let qkv = values(tokens * heads.all(), 1);
        for branch in [None, Some(branches(tokens))] {
            let expected = attention(&qkv, branch.as_deref(), tokens, heads);
            let (mut y, mut log_sum) = (vec![f32::NAN; tokens * width], vec![f32::NAN; heads.queries * tokens]);
            let qkv = narrow(&qkv);
            for (index, log_sum) in log_sum.chunks_mut(tokens).enumerate() {
                let head = Head { qkv: &qkv, branch: branch.as_deref(), index, heads, cache: None };
                forward(head, &mut slices_of(&mut y, width, index * head_dim, head_dim), log_sum);
            }
            for (got, expected) in y.iter().zip(&expected.y).chain(log_sum.iter().zip(&expected.log_sum)) {
                assert!((f64::from(*got) - expected).abs() < 2e-6, "{shape:?}: {got}, expected {expected}");
            }
        }
    }
}

#[test]
fn what_a_cache_holds_is_attended_to_as_what_is_read_again() {
    for shape @ (tokens, heads) in shapes() {
        let (width, head_dim) = (heads.output(), heads.width);
        let qkv = values(tokens * heads.all(), 1);
        let expected = attention(&qkv, None, tokens, heads).y;
        let qkv = narrow(&qkv);
        let part = |place: usize| -> Vec<f32> {
            slices(&qkv, heads.all(), place * head_dim, head_dim).flatten().copied().collect()
        };
        for before in [0, tokens / 3, tokens - 1] {
            let new = tokens - before;
            let mut y = vec![f32::NAN; new * width];
            for index in 0..heads.queries {
                let shared = heads.queries + index / heads.sharing();
                let cache = [part(shared), part(shared + heads.shared)];
                let [keys, values] = cache.each_ref().map(|cache| &cache[..]);
                let rest = &qkv[before * heads.all()..];
                let head = Head { qkv: rest, branch: None, index, heads, cache: Some([keys, values]) };
                let mut log_sum = vec![0.0; new];
                forward(head, &mut slices_of(&mut y, width, index * head_dim, head_dim), &mut log_sum);
                // The last one by itself.
                let (queries, at) = (part(index), (tokens - 1) * head_dim);
                let mut one = vec![f32::NAN; head_dim];
                let parts = |all: &'_ [f32]| [all[..at].to_vec(), all[at..].to_vec()];
                let (keys, values) = (parts(keys), parts(values));
                of_one_query(&queries[at..], [&keys[0], &keys[1]], [&values[0], &values[1]], &mut Vec::new(), &mut one);
                let same = &expected[(tokens - 1) * width + index * head_dim..][..head_dim];
                for (found, expected) in one.iter().zip(same) {
                    assert!((f64::from(*found) - expected).abs() < 2e-6, "{shape:?}: {found}, {expected}");
                }
            }
            for (found, expected) in y.iter().zip(&expected[before * width..]) {
                assert!((f64::from(*found) - expected).abs() < 2e-6, "{shape:?} {before}: {found}, {expected}");
            }
        }
    }
}

#[test]
fn backward_is_that_of_central_differences() {
    for shape @ (tokens, heads) in shapes() {
        let (qkv, dy) = (values(tokens * heads.all(), 2), values(tokens * heads.output(), 3));
        for branch in [None, Some(branches(tokens))] {
            let there = attention(&qkv, branch.as_deref(), tokens, heads);
            let [given_qkv, given_dy, y, log_sum] = [&qkv, &dy, &there.y, &there.log_sum].map(|v| narrow(v));
            let mut dqkv = vec![f32::NAN; qkv.len()];
            let sharing = heads.sharing();
            for (group, log_sum) in log_sum.chunks(sharing * tokens).enumerate() {
                let index = group * sharing;
                let head = Head { qkv: &given_qkv, branch: branch.as_deref(), index, heads, cache: None };
                let mut by_place: Vec<Vec<&mut [f32]>> = (0..heads.all() / heads.width).map(|_| Vec::new()).collect();
                for row in dqkv.chunks_mut(heads.all()) {
                    for (place, slice) in by_place.iter_mut().zip(row.chunks_mut(heads.width)) {
                        place.push(slice);
                    }
                }
                let values = by_place.remove(heads.queries + heads.shared + group);
                let keys = by_place.remove(heads.queries + group);
                let queries = by_place.into_iter().skip(index).take(sharing).collect();
                backward(head, [&given_dy, &y], log_sum, &mut Gradients { queries, keys, values });
            }
            let loss = |qkv: &[f64]| -> f64 {
                attention(qkv, branch.as_deref(), tokens, heads).y.iter().zip(&dy).map(|(y, dy)| y * dy).sum()
            };
            // An odd step meets every part, head and place in turn.
            for index in (0..qkv.len()).step_by(1 + qkv.len() / 122 * 2) {
                let mut moved = qkv.clone();
                moved[index] += 1e-5;
                let above = loss(&moved);
                moved[index] -= 2e-5;
                let slope = (above - loss(&moved)) / 2e-5;
                let got = f64::from(dqkv[index]);
                assert!((got - slope).abs() < 1e-5, "{shape:?} {index}: {got}, expected {slope}");
            }
            assert!(dqkv.iter().all(|value| value.is_finite()));
        }
    }
}

/// The gradient by queries, keys and values in f64, from the definition, without branches.
fn gradient(qkv: &[f64], dy: &[f64], tokens: usize, all: Heads) -> Vec<f64> {
    let Heads { queries, shared, width } = all;
    let place = |part: usize, head: usize| {
        [head, queries + head * shared / queries, queries + shared + head * shared / queries][part] * width
    };
    let at = |part: usize, token: usize, head: usize| &qkv[token * all.all() + place(part, head)..][..width];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (width as f64).sqrt().recip();
    let mut gradient = vec![0.0; qkv.len()];
    for head in 0..queries {
        for j in 0..tokens {
            let dy = &dy[j * all.output() + head * width..][..width];
            let scores: Vec<f64> = (0..=j).map(|i| (dot(at(0, j, head), at(1, i, head)) * scale).exp()).collect();
            let sum: f64 = scores.iter().sum();
            let by_share: Vec<f64> = (0..=j).map(|i| dot(dy, at(2, i, head))).collect();
            let mean: f64 = scores.iter().zip(&by_share).map(|(score, by)| score / sum * by).sum();
            for i in 0..=j {
                let share = scores[i] / sum;
                let by_score = share * (by_share[i] - mean) * scale;
                for d in 0..width {
                    gradient[j * all.all() + place(0, head) + d] += by_score * at(1, i, head)[d];
                    gradient[i * all.all() + place(1, head) + d] += by_score * at(0, j, head)[d];
                    gradient[i * all.all() + place(2, head) + d] += share * dy[d];
                }
            }
        }
    }
    gradient
}

fn here(number: usize, calls: crate::Calls<'_>) -> Result<(), std::convert::Infallible> {
    (0..number).for_each(calls);
    Ok(())
}

fn near(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() < tolerance, "{what} {index}: {found}, expected {expected}");
    }
}

#[test]
fn of_a_batch_all_walks_and_their_tangents_are_the_definition() {
    const BATCH: usize = 2;
    const STEP: f64 = 1e-5;
    for (tokens, heads) in shapes() {
        let shape = Attended { batch: BATCH, tokens, heads };
        let (all, outputs) = (tokens * heads.all(), tokens * heads.output());
        let (qkv, qkv_dot) = (values(BATCH * all, 2), values(BATCH * all, 5));
        let (dy, dy_dot) = (values(BATCH * outputs, 3), values(BATCH * outputs, 7));
        let of_rows = |f: &dyn Fn(usize) -> Vec<f64>| (0..BATCH).flat_map(f).collect::<Vec<_>>();
        let part = |values: &[f64], row: usize, each: usize| values[row * each..(row + 1) * each].to_vec();
        let moved = |values: &[f64], dot: &[f64], step: f64| -> Vec<f64> {
            values.iter().zip(dot).map(|(value, dot)| value + step * dot).collect()
        };
        let slope = |f: &dyn Fn(f64) -> Vec<f64>| -> Vec<f64> {
            f(STEP).iter().zip(f(-STEP)).map(|(above, below)| (above - below) / (2.0 * STEP)).collect()
        };
        let output = |step: f64| {
            let qkv = moved(&qkv, &qkv_dot, step);
            of_rows(&|row| attention(&part(&qkv, row, all), None, tokens, heads).y)
        };
        let by_qkv = |step: f64| {
            let (qkv, dy) = (moved(&qkv, &qkv_dot, step), moved(&dy, &dy_dot, step));
            of_rows(&|row| gradient(&part(&qkv, row, all), &part(&dy, row, outputs), tokens, heads))
        };
        let [given, given_dot, by_y, by_y_dot] = [&qkv, &qkv_dot, &dy, &dy_dot].map(|values| narrow(values));
        let [mut y, mut y_dot] = [(); 2].map(|()| vec![f32::NAN; BATCH * outputs]);
        let [mut sums, mut means] = [(); 2].map(|()| vec![f32::NAN; BATCH * heads.queries * tokens]);
        let [mut back, mut back_dot] = [(); 2].map(|()| vec![f32::NAN; BATCH * all]);
        batch::forward(shape, &given, None, [&mut y, &mut sums], here).unwrap();
        near(&y, &output(0.0), 2e-6, "y");
        batch::backward(shape, &given, [&by_y, &y], &sums, &mut back, here).unwrap();
        near(&back, &by_qkv(0.0), 1e-5, "gradient");
        batch::tangent(shape, [&given, &given_dot], &sums, [&mut y_dot, &mut means], here).unwrap();
        near(&y_dot, &slope(&output), 1e-5, "tangent");
        let pairs = [[&given[..], &given_dot], [&by_y[..], &by_y_dot], [&y[..], &y_dot], [&sums[..], &means]];
        let [qkvs, dys, ys, statistics] = pairs;
        batch::tangent_backward(shape, qkvs, dys, ys, statistics, &mut back_dot, here).unwrap();
        near(&back_dot, &slope(&by_qkv), 1e-4, "tangent of the gradient");
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let (shape, heads) = (|batch| Attended { batch, tokens: 3, heads: heads(2, 1, 4) }, heads(2, 1, 4));
    let (qkv, mut y, mut sums) = (vec![0.0; 2 * 3 * heads.all()], vec![0.0; 2 * 3 * heads.output()], vec![0.0; 12]);
    let mut of = |batch, branch: Option<&[i64]>| batch::forward(shape(batch), &qkv, branch, [&mut y, &mut sums], here);
    assert!(of(2, None).is_ok() && of(2, Some(&[0; 6])).is_ok());
    assert!(matches!(of(3, None), Err(Failure::Misfit)));
    assert!(matches!(of(2, Some(&[0; 5])), Err(Failure::Misfit)));
    let mut back = qkv.clone();
    assert!(batch::backward(shape(2), &qkv, [&y, &y[1..]], &sums, &mut back, here).is_err());
}
