use super::*;

/// Whether there is nothing to compute, and the shapes of the outputs.
type Found = Result<(bool, Vec<Vec<i64>>), Misfit>;

/// An operator with shapes that fit it.
struct Operator {
    name: &'static str,
    fitting: &'static [&'static [i64]],
    describe: fn(&[&[i64]]) -> Found,
}

fn of_rows(rows: Rows) -> (bool, Vec<Vec<i64>>) {
    (rows.is_empty(), vec![rows.output])
}

/// 4 heads of queries, 2 of keys and of values.
fn heads() -> HeadCounts {
    HeadCounts::new(4, 2).unwrap()
}

fn operators() -> Vec<Operator> {
    let of = |name, fitting, describe| Operator { name, fitting, describe };
    let mut operators = vec![
        of("GeluGradient", &[&[2, 3, 8], &[2, 3, 8]], |s| Ok(of_rows(gelu_gradient(s)?))),
        of("LayerNormalizationGradient", &[&[2, 3, 8], &[2, 3, 8], &[8], &[2, 3, 1], &[2, 3, 1]], |s| {
            Ok(of_rows(layer_normalization_gradient(s)?))
        }),
        of("RmsNormalizationGradient", &[&[2, 3, 8], &[2, 3, 8], &[8], &[2, 3, 1]], |s| {
            Ok(of_rows(rms_normalization_gradient(s)?))
        }),
        of("RmsNormalization", &[&[2, 3, 8], &[8]], |s| {
            let (rows, statistics) = rms_normalization(s)?;
            Ok((rows.is_empty(), vec![rows.output, statistics]))
        }),
        of("SwiGlu", &[&[2, 3, 8]], |s| Ok(of_rows(swi_glu(s)?))),
        of("SwiGluGradient", &[&[2, 3, 4], &[2, 3, 8]], |s| Ok(of_rows(swi_glu_gradient(s)?))),
        of("Rotary", &[&[2, 3, 24], &[3, 2], &[3, 2]], |s| Ok(of_rows(rotary(4, s)?.rows))),
        of("AdapterUp", &[&[6, 4], &[4, 8], &[8], &[6, 8], &[6, 8]], |s| {
            let sum = adapter_up(s)?;
            Ok((sum.is_empty(), vec![sum.output()]))
        }),
        of("AdapterDownGradient", &[&[6, 4], &[8, 4], &[6, 8]], |s| {
            let sum = adapter_down_gradient(s)?;
            Ok((sum.is_empty(), vec![sum.output()]))
        }),
        of("RowAdapters", &[&[6, 8], &[6, 8], &[3, 8, 4], &[3, 4], &[3, 4, 8], &[3, 8]], |s| {
            let rows = row_adapters(s)?;
            Ok((rows.is_empty(), vec![rows.output().to_vec()]))
        }),
        of("CausalAttention", &[&[2, 3, 16]], |s| {
            let attended = attention(heads(), false, s)?;
            Ok((attended.is_empty(), vec![attended.outputs(), attended.sums()]))
        }),
        of("BranchedAttention", &[&[2, 3, 16], &[2, 3]], |s| {
            let attended = attention(heads(), true, s)?;
            Ok((attended.is_empty(), vec![attended.outputs(), attended.sums()]))
        }),
        of("CausalAttentionGradient", &[&[2, 3, 8], &[2, 3, 8], &[2, 3, 16], &[2, 4, 3]], |s| {
            let attended = attention_gradient(heads(), s)?;
            Ok((attended.is_empty(), vec![attended.all()]))
        }),
        of("TargetLogProb", &[&[6, 7], &[6]], |s| {
            let logits = target_log_prob(s)?;
            Ok((logits.is_empty(), vec![vec![logits.rows as i64]]))
        }),
        of("TargetLogProbGradient", &[&[6], &[6, 7], &[6], &[6]], |s| {
            let logits = target_log_prob_gradient(s)?;
            Ok((logits.is_empty(), vec![vec![logits.rows as i64, logits.classes as i64]]))
        }),
    ];
    {
        use crate::product::Direction::{Back, Forward};
        fn product(product: IntegerProduct) -> (bool, Vec<Vec<i64>>) {
            (product.is_empty(), vec![product.output()])
        }
        operators.extend([
            of("QuantizedMatMul", &[&[3, 64], &[5, 64], &[5]], |s| {
                Ok(product(integer_product(Form::Bytes, Forward, false, s)?))
            }),
            of("QuantizedLinear", &[&[3, 64], &[5, 64], &[5], &[5]], |s| {
                Ok(product(integer_product(Form::Bytes, Forward, true, s)?))
            }),
            of("QuantizedMatMulGradient", &[&[3, 5], &[5, 64], &[5]], |s| {
                Ok(product(integer_product(Form::Bytes, Back, false, s)?))
            }),
            of("AffineMatMul", &[&[3, 64], &[5, 64], &[5, 2], &[5, 2]], |s| {
                Ok(product(integer_product(Form::Affine, Forward, false, s)?))
            }),
            of("AffineLinear", &[&[3, 64], &[5, 64], &[5, 2], &[5, 2], &[5]], |s| {
                Ok(product(integer_product(Form::Affine, Forward, true, s)?))
            }),
            of("AffineMatMulGradient", &[&[3, 5], &[5, 64], &[5, 2], &[5, 2]], |s| {
                Ok(product(integer_product(Form::Affine, Back, false, s)?))
            }),
            of("FewRowsMatMul", &[&[3, 64], &[5, 2, 32], &[10]], |s| {
                Ok(product(integer_product(Form::FewBytes, Forward, false, s)?))
            }),
            of("FewRowsLinear", &[&[3, 64], &[5, 2, 32], &[10], &[5]], |s| {
                Ok(product(integer_product(Form::FewBytes, Forward, true, s)?))
            }),
            of("FewRowsAffineMatMul", &[&[3, 64], &[5, 2, 16], &[5, 2], &[5, 2]], |s| {
                Ok(product(integer_product(Form::FewAffine, Forward, false, s)?))
            }),
            of("FewRowsAffineLinear", &[&[3, 64], &[5, 2, 16], &[5, 2], &[5, 2], &[5]], |s| {
                Ok(product(integer_product(Form::FewAffine, Forward, true, s)?))
            }),
        ]);
    }
    operators
}

/// What nobody means, and what nobody has memory for.
const STRANGE: &[i64] =
    if cfg!(miri) { &[0, -1, i64::MAX] } else { &[0, -1, i64::MIN, 1, 1 << 40, 1 << 62, i64::MAX - 1, i64::MAX] };

/// Describes shapes, and checks what every description promises: no panic, and of what is computed no dimension that is 0 or
/// beyond all memory.
fn described(operator: &Operator, shapes: &[Vec<i64>]) -> Found {
    let given: Vec<&[i64]> = shapes.iter().map(Vec::as_slice).collect();
    let found = (operator.describe)(&given);
    if let Ok((empty, outputs)) = &found {
        for output in outputs {
            let wide: i128 = output.iter().map(|&dim| i128::from(dim)).try_fold(1, i128::checked_mul).unwrap_or(-1);
            let elements = elements(output);
            assert_eq!(*empty, elements == Some(0), "{} {shapes:?}: {output:?}", operator.name);
            assert!(*empty || elements.is_some_and(|e| e as i128 == wide), "{} {shapes:?}: {output:?}", operator.name);
        }
        for shape in shapes {
            assert!(elements(shape).is_some(), "{} {shapes:?}", operator.name);
        }
    }
    found
}

#[test]
fn shapes_that_fit_are_worked_on() {
    for operator in operators() {
        let shapes: Vec<Vec<i64>> = operator.fitting.iter().map(|shape| shape.to_vec()).collect();
        let (empty, _) = described(&operator, &shapes).unwrap_or_else(|misfit| panic!("{}: {misfit}", operator.name));
        assert!(!empty, "{}", operator.name);
    }
}

/// The inputs' dimensions that are the operator's own choice, beside which nothing stands.
fn free(operator: &str) -> &'static [(usize, usize)] {
    match operator {
        "SwiGlu" | "CausalAttention" | "Rotary" => &[(0, 0), (0, 1), (0, 2)],
        "RmsNormalization" => &[(0, 0), (0, 1)],
        "BranchedAttention" => &[(0, 2)],
        "TargetLogProb" => &[(0, 1)],
        "TargetLogProbGradient" => &[(1, 1)],
        "QuantizedMatMulGradient" | "AffineMatMulGradient" => &[(0, 0), (1, 1)],
        product if product.contains("Quantized") || product.contains("Affine") || product.starts_with("FewRows") => {
            &[(0, 0)]
        }
        _ => &[],
    }
}

#[test]
fn one_dimension_that_is_another_is_refused_or_leaves_nothing_to_do() {
    for operator in operators() {
        let fitting: Vec<Vec<i64>> = operator.fitting.iter().map(|shape| shape.to_vec()).collect();
        for (input, shape) in fitting.iter().enumerate() {
            for place in 0..shape.len() {
                for &strange in STRANGE {
                    let mut shapes = fitting.clone();
                    shapes[input][place] = strange;
                    let found = described(&operator, &shapes);
                    let is_free = free(operator.name).contains(&(input, place)) || strange == shape[place];
                    let is_found = is_free || found.is_err() || found.is_ok_and(|(empty, _)| empty);
                    assert!(is_found, "{} {shapes:?}", operator.name);
                }
            }
        }
    }
}

#[test]
fn two_dimensions_are_never_more_than_was_checked() {
    for operator in operators() {
        let fitting: Vec<Vec<i64>> = operator.fitting.iter().map(|shape| shape.to_vec()).collect();
        let places: Vec<(usize, usize)> = fitting
            .iter()
            .enumerate()
            .flat_map(|(input, shape)| (0..shape.len()).map(move |place| (input, place)))
            .collect();
        for first in &places {
            for second in &places {
                for (a, b) in STRANGE.iter().flat_map(|a| STRANGE.iter().map(move |b| (*a, *b))) {
                    let mut shapes = fitting.clone();
                    shapes[first.0][first.1] = a;
                    shapes[second.0][second.1] = b;
                    let _ = described(&operator, &shapes);
                }
            }
        }
        // All dimensions alike.
        for &strange in STRANGE {
            let shapes: Vec<Vec<i64>> = fitting.iter().map(|shape| vec![strange; shape.len()]).collect();
            let _ = described(&operator, &shapes);
        }
    }
}

#[test]
fn other_ranks_and_numbers_of_inputs_are_refused() {
    for operator in operators() {
        let fitting: Vec<Vec<i64>> = operator.fitting.iter().map(|shape| shape.to_vec()).collect();
        assert!(matches!(described(&operator, &fitting[1..]), Err(Misfit::Number { .. })), "{}", operator.name);
        let more: Vec<Vec<i64>> = fitting.iter().cloned().chain([vec![1]]).collect();
        assert!(matches!(described(&operator, &more), Err(Misfit::Number { .. })), "{}", operator.name);
        assert!(described(&operator, &[]).is_err(), "{}", operator.name);
        for input in 0..fitting.len() {
            for shape in [vec![], vec![2], vec![0; 9], vec![1 << 30; 9]] {
                let mut shapes = fitting.clone();
                shapes[input] = shape;
                let _ = described(&operator, &shapes);
            }
        }
    }
    for rank in [&[4][..], &[1, 1, 2, 16]] {
        assert!(adapter_up(&[rank; 5]).is_err() && target_log_prob(&[rank; 2]).is_err());
        assert!(attention(heads(), false, &[rank]).is_err());
    }
}

#[test]
fn empty_inputs_make_empty_outputs_or_are_refused() {
    let qkv = attention(heads(), false, &[&[1 << 40, 0, 576]]).unwrap();
    assert!(qkv.is_empty() && qkv.outputs() == [1 << 40, 0, 288] && qkv.sums() == [1 << 40, 4, 0]);
    assert!(attention(heads(), false, &[&[1, 2, 0]]).is_err());
    assert!(rms_normalization(&[&[1 << 40, 0], &[0]]).is_err(), "one statistic a row, of nothing");
    assert!(target_log_prob(&[&[3, 0], &[3]]).is_err() && target_log_prob(&[&[0, 0], &[0]]).unwrap().is_empty());
    assert!(adapter_up(&[&[2, 0], &[0, 8], &[8], &[2, 8], &[2, 8]]).is_err(), "a sum of nothing");
    assert!(adapter_up(&[&[0, 4], &[4, 8], &[8], &[0, 8], &[0, 8]]).unwrap().is_empty());
    for form in [Form::Bytes, Form::Affine, Form::FewBytes, Form::FewAffine] {
        use crate::product::Direction::{Back, Forward};
        let few = form.is_for_few();
        let of = |direction, x: &[i64], w: &[i64], scales: &[i64]| {
            let in_blocks = [w[0], 1, w[1] / if form.is_affine() { 2 } else { 1 }];
            let w = if few { &in_blocks[..] } else { w };
            let mut shapes = vec![x, w, scales];
            shapes.extend(form.is_affine().then_some(scales));
            integer_product(form, direction, false, &shapes)
        };
        for columns in [1, 5, 1 << 40] {
            assert!(of(Forward, &[2, 0], &[columns, 0], &[columns]).is_err(), "{form:?}");
            assert!(of(Forward, &[0, 0], &[columns, 0], &[columns]).unwrap().is_empty(), "{form:?}");
        }
        assert!(of(Forward, &[2, 16], &[0, 16], &[0]).unwrap().is_empty(), "{form:?}");
        if !few {
            assert!(of(Back, &[2, 0], &[0, 16], &[0]).is_err() && of(Back, &[2, 5], &[5, 0], &[5]).unwrap().is_empty());
        }
    }
}

#[test]
fn numbers_of_heads_are_checked_without_wrapping() {
    assert_eq!(heads().all, 8);
    let most = i64::MAX;
    for (queries, shared) in [
        (0, 1),
        (1, 0),
        (-1, 1),
        (4, -2),
        (3, 2),
        (2, 4),
        (most, most),
        (most, 1),
        (most - 1, (most - 1) / 2),
        (i64::MIN, 1),
    ] {
        let Err(misfit) = HeadCounts::new(queries, shared) else { panic!("{queries} {shared}") };
        assert!(misfit.to_string().contains(&format!("num_heads = {queries} and kv_num_heads = {shared}")), "{misfit}");
    }
    for heads in [0, -1, i64::MAX, i64::MIN, 1 << 62, 1 << 61] {
        assert!(rotary(heads, &[&[2, 3, 24], &[3, 2], &[3, 2]]).is_err(), "{heads}");
    }
}

#[test]
fn elements_are_counted_without_wrapping() {
    let most = i64::try_from(MOST_ELEMENTS).unwrap();
    for (shape, expected) in [
        (&[][..], Some(1)),
        (&[7], Some(7)),
        (&[2, 3, 4], Some(24)),
        (&[i64::MAX, 0, i64::MAX], Some(0)),
        (&[0, -1], None),
        (&[-1, 0], None),
        (&[-1, -1], None),
        (&[most], Some(MOST_ELEMENTS)),
        (&[most + 1], None),
        (&[1 << 32, 1 << 32], None),
        (&[i64::MAX, i64::MAX], None),
        (&[1 << 40, 1 << 40, 1 << 40], None),
    ] {
        assert_eq!(elements(shape), expected, "{shape:?}");
    }
}

#[test]
fn a_misfit_names_the_input_its_shape_and_what_would_fit() {
    let misfit = adapter_up(&[&[6, 4], &[4, 9], &[8], &[6, 8], &[6, 8]]).unwrap_err();
    assert_eq!(misfit.to_string(), "weight has the shape [4, 9], expected [4, 8]");
}
