//! Numbers in vectors of 64 bytes.

use std::arch::x86_64::*;

use half::f16;

/// Up to 64 bytes, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn load(bytes: &[u8]) -> __m512i {
    let mask = u64::MAX.checked_shr(64 - bytes.len().min(64) as u32).unwrap_or(0);
    // SAFETY: the mask has as many ones as there are bytes, and 64 at most.
    unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().cast()) }
}

/// Up to 16 numbers, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn load_f32s(values: &[f32]) -> __m512 {
    let mask = u16::MAX.checked_shr(16 - values.len().min(16) as u32).unwrap_or(0);
    // SAFETY: the mask has as many ones as there are numbers, and 16 at most.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn load_i8s(bytes: &[i8; 64]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn load_i32s(values: &[i32; 16]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(values.as_ptr().cast()) }
}

/// Up to 16 numbers of 16 bits, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn load_halves(values: &[f16]) -> __m256i {
    let mask = u16::MAX.checked_shr(16 - values.len().min(16) as u32).unwrap_or(0);
    // SAFETY: the mask has as many ones as there are numbers, and 16 at most.
    unsafe { _mm256_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
}
