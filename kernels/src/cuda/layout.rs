//! How tensors lie when kernels read them: dense or in rows that lie evenly apart, from an address that sixteen bytes fit. What does not is
//! copied.

use tch::{TchError, Tensor};

use super::address;

/// Bytes of the widest access of a kernel.
const ACCESS: u64 = 16;
/// Numbers that the distance of rows is a multiple of, so that every row begins where one access may.
const SPACING: i64 = 8;

/// Most blocks along the second and third axis of a launch.
pub(crate) const MAX_GRID: i64 = 65_535;

/// The tensor, dense and aligned.
pub(crate) fn dense(tensor: &Tensor) -> Result<Tensor, TchError> {
    let dense = tensor.f_contiguous()?;
    // A dense view may begin anywhere within another tensor, and counts as contiguous.
    if address(&dense).is_multiple_of(ACCESS) { Ok(dense) } else { dense.f_mul_scalar(1) }
}

/// The tensor as rows `(N, width)` that are dense each; their distance is its first stride.
pub(crate) fn rows(tensor: &Tensor, width: i64) -> Result<Tensor, TchError> {
    let rows = tensor.f_reshape([-1, width])?;
    let [distance, step] = rows.stride()[..] else { return dense(&rows) };
    let alone = rows.size()[0] <= 1;
    let apart = alone || (distance >= width && distance % SPACING == 0);
    if step == 1 && apart && address(&rows).is_multiple_of(ACCESS) {
        return Ok(rows);
    }
    // A single row, or one that all repeat, counts as contiguous whatever its strides say.
    let copied = rows.f_contiguous()?.f_mul_scalar(1)?;
    copied.f_contiguous()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn numbers(count: i64) -> Tensor {
        Tensor::arange(count, (Kind::Float, Device::Cpu))
    }

    fn fits(rows: &Tensor) -> bool {
        let stride = rows.stride();
        let spaced = rows.size()[0] <= 1 || (stride[0] % SPACING == 0 && stride[0] >= rows.size()[1]);
        stride[1] == 1 && spaced && address(rows).is_multiple_of(ACCESS)
    }

    #[test]
    fn halves_of_wider_rows_are_taken_as_they_lie() {
        let both = numbers(96).view([2, 3, 16]);
        let half = both.narrow(2, 8, 8);
        let found = rows(&half, 8).unwrap();
        assert_eq!((found.size(), found.stride()[0]), (vec![6, 8], 16));
        assert_eq!(found.data_ptr(), half.data_ptr());
        assert!(fits(&found));
    }

    #[test]
    fn what_lies_otherwise_is_copied_with_its_values() {
        let flat = numbers(200);
        let odd_start = flat.narrow(0, 2, 32).view([1, 32]);
        let odd_distance = flat.narrow(0, 0, 90).view([9, 10]).narrow(1, 0, 8);
        let repeated = flat.narrow(0, 0, 8).unsqueeze(0).expand([5, 8], false);
        let swapped = flat.narrow(0, 0, 64).view([1, 8, 8]).transpose(0, 1);
        let one_of_many = flat.narrow(0, 0, 64).view([8, 8]).tr().narrow(0, 0, 1);
        for (tensor, width) in
            [(odd_start, 32), (odd_distance, 8), (repeated, 8), (swapped, 8), (one_of_many, 8)]
        {
            let found = rows(&tensor, width).unwrap();
            assert!(fits(&found), "{:?} {:?}", found.size(), found.stride());
            assert!(found.equal(&tensor.reshape([-1, width])));
        }
        let view = flat.narrow(0, 3, 40);
        let found = dense(&view).unwrap();
        assert!(address(&found).is_multiple_of(ACCESS) && found.equal(&view));
    }

    #[test]
    fn gradients_go_through_a_copy() {
        let flat = numbers(40).set_requires_grad(true);
        dense(&flat.narrow(0, 3, 16)).unwrap().sum(Kind::Float).backward();
        assert_eq!(flat.grad().sum(Kind::Float).double_value(&[]), 16.0);
    }
}
