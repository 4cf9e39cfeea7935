//! Shapes of our operators' inputs: a graph may give any.

use marionette_runtime::kernels::product::Direction;
use marionette_runtime::kernels::shapes::{self, Form, HeadCounts};

/// Dimensions that are worth more than chance gives.
const DIMS: [i64; 16] = [0, 1, 2, 3, 4, 8, 16, 64, 576, -1, i64::MIN, i64::MAX, 1 << 31, 1 << 32, 1 << 40, 1 << 62];

/// An input: the operator, two attributes, and for each shape its rank and dimensions, a byte each ([`DIMS`], or the number itself).
pub fn shapes(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut dim = |byte: u8| DIMS.get(usize::from(byte)).copied().unwrap_or_else(|| i64::from(byte));
    let (Some(operator), Some(first), Some(second)) = (bytes.next(), bytes.next(), bytes.next()) else { return };
    let [first, second] = [first, second].map(&mut dim);
    let mut all: Vec<Vec<i64>> = Vec::new();
    while let Some(rank) = bytes.next() {
        all.push(bytes.by_ref().take(usize::from(rank % 5)).map(&mut dim).collect());
    }
    let all: Vec<&[i64]> = all.iter().map(Vec::as_slice).collect();
    let counts = HeadCounts::new(first, second);
    // What is described is never more than a tensor can be.
    let fits = |elements: Option<usize>| assert!(elements.is_none_or(|elements| elements <= shapes::MOST_ELEMENTS));
    let rows = |rows: &shapes::Rows| {
        fits(Some(rows.rows.checked_mul(rows.width).expect("as many as the input has")));
        fits(shapes::elements(&rows.output));
    };
    match operator % 15 {
        0 => shapes::gelu_gradient(&all).iter().for_each(rows),
        1 => shapes::layer_normalization_gradient(&all).iter().for_each(rows),
        2 => shapes::rms_normalization_gradient(&all).iter().for_each(rows),
        3 => shapes::rms_normalization(&all).iter().for_each(|(found, _)| rows(found)),
        4 => shapes::swi_glu(&all).iter().for_each(rows),
        5 => shapes::swi_glu_gradient(&all).iter().for_each(rows),
        6 => drop(shapes::rotary(first, &all)),
        7 => drop(shapes::adapter_up(&all)),
        8 => drop(shapes::adapter_down_gradient(&all)),
        9 => drop(counts.and_then(|counts| shapes::attention(counts, second % 2 == 0, &all))),
        10 => drop(counts.and_then(|counts| shapes::attention_gradient(counts, &all))),
        11 => drop(shapes::target_log_prob(&all)),
        12 => drop(shapes::target_log_prob_gradient(&all)),
        13 => drop(shapes::row_adapters(&all)),
        _ => {
            let form = [Form::Bytes, Form::Affine, Form::FewBytes, Form::FewAffine][first.rem_euclid(4) as usize];
            let direction = if second % 2 == 0 { Direction::Forward } else { Direction::Back };
            drop(shapes::integer_product(form, direction, second % 3 == 0, &all));
        }
    }
}

/// One for each operator, with shapes that fit it.
pub fn seeds() -> Vec<Vec<u8>> {
    let fitting: [&[&[u8]]; 15] = [
        &[&[2, 16], &[2, 16]],
        &[&[2, 16], &[2, 16], &[16], &[2, 1], &[2, 1]],
        &[&[2, 16], &[2, 16], &[16], &[2, 1]],
        &[&[2, 16], &[16]],
        &[&[2, 16]],
        &[&[2, 8], &[2, 16]],
        &[&[2, 3, 16], &[6, 4], &[6, 4]],
        &[&[2, 4], &[4, 16], &[16], &[2, 16], &[2, 16]],
        &[&[2, 4], &[16, 4], &[2, 16]],
        &[&[2, 3, 96]],
        &[&[2, 3, 32], &[2, 3, 32], &[2, 3, 96], &[2, 2, 3]],
        &[&[3, 16], &[3]],
        &[&[3], &[3, 16], &[3], &[3]],
        &[&[6, 16], &[6, 16], &[3, 16, 4], &[3, 4], &[3, 4, 16], &[3, 16]],
        &[&[2, 16], &[64, 16], &[64]],
    ];
    let seed = |(operator, shapes): (usize, &&[&[u8]])| {
        let mut seed = vec![operator as u8, 2, 2];
        for shape in *shapes {
            seed.push(shape.len() as u8);
            seed.extend_from_slice(shape);
        }
        seed
    };
    fitting.iter().enumerate().map(seed).collect()
}
