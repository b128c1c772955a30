//! Seeded inputs, and tensors from and to f32.

use half::{bf16, f16};
use smart_run::device::{DType, Device, Tensor};

/// The dtypes of models.
pub const MODEL_DTYPES: [DType; 3] = [DType::Bf16, DType::F16, DType::F32];

/// splitmix64: small, seeded, good enough to fill tensors.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Close to normal, mean 0 and variance 1: the sum of four uniforms.
    pub fn normal(&mut self) -> f32 {
        ((0..4).map(|_| self.unit()).sum::<f32>() - 2.0) * 3f32.sqrt()
    }

    /// `len` normal values.
    pub fn normals(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }

    /// `len` normal values of which about one in 64 is 30 times as large, as activations have them.
    pub fn with_outliers(&mut self, len: usize) -> Vec<f32> {
        let mut values = self.normals(len);
        for _ in 0..len.div_ceil(64) {
            let at = self.below(len);
            values[at] *= 30.0;
        }
        values
    }
}

/// `value` as `dtype` holds it.
pub fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// All of `values` as `dtype` holds them.
pub fn rounded(dtype: DType, values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|value| round_to(dtype, value)).collect()
}

/// A tensor of `dtype` made from f32 values.
pub fn upload(device: &Device, dtype: DType, values: &[f32], shape: &[usize]) -> Tensor {
    match dtype {
        DType::Bf16 => {
            Tensor::from_slice(device, &values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>(), shape)
        }
        DType::F16 => {
            Tensor::from_slice(device, &values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>(), shape)
        }
        DType::F32 => Tensor::from_slice(device, values, shape),
        other => panic!("{other:?} is not a model dtype"),
    }
    .unwrap()
}

/// The values of a tensor without gaps, as f32. Waits for all work issued so far.
pub fn download(tensor: &Tensor) -> Vec<f32> {
    match tensor.dtype() {
        DType::Bf16 => tensor.to_vec::<bf16>().unwrap().into_iter().map(bf16::to_f32).collect(),
        DType::F16 => tensor.to_vec::<f16>().unwrap().into_iter().map(f16::to_f32).collect(),
        _ => tensor.to_vec::<f32>().unwrap(),
    }
}

/// A tensor full of NaN, so that an element nobody wrote cannot pass.
pub fn poisoned(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let tensor = Tensor::uninit(device, dtype, shape).unwrap();
    tensor.fill_bytes(0xff).unwrap();
    tensor
}

/// A poisoned matrix inside a larger poisoned one: a kernel that writes past its rows or columns is found.
pub struct Guarded {
    whole: Tensor,
    rows: usize,
    columns: usize,
    offset: usize,
}

impl Guarded {
    /// `rows` x `columns`, starting `offset` columns into rows that are 24 columns longer.
    pub fn new(device: &Device, dtype: DType, rows: usize, columns: usize, offset: usize) -> Self {
        let whole = poisoned(device, dtype, &[rows + 1, columns + 24]);
        Self { whole, rows, columns, offset }
    }

    /// The matrix to write.
    pub fn view(&self) -> Tensor {
        self.whole.rows(0..self.rows).columns(self.offset..self.offset + self.columns)
    }

    /// What was written, after checking that all around it is untouched.
    #[track_caller]
    pub fn values(&self) -> Vec<f32> {
        let (all, width) = (download(&self.whole), self.columns + 24);
        let inside = |i: usize| {
            i / width < self.rows && (self.offset..self.offset + self.columns).contains(&(i % width))
        };
        for (i, value) in all.iter().enumerate() {
            assert!(inside(i) || value.is_nan(), "row {} column {} was overwritten", i / width, i % width);
        }
        (0..all.len()).filter(|&i| inside(i)).map(|i| all[i]).collect()
    }
}
