//! From checkpoint to device memory: converts to the run type, concatenates what one launch multiplies.

use crate::config::FloatType;
use crate::device::{DType, Device, Tensor};
use crate::error::Result;
use crate::model::dummy::DummyWeights;
use crate::weights::Checkpoint;

/// Rows converted at a time, bytes: bounds the host memory of loading.
const BLOCK_BYTES: usize = 8 << 20;

/// Called with the bytes loaded so far and the bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// Loads tensors of one checkpoint to one device in one float type.
pub(crate) struct WeightLoader<'a, 'p> {
    pub device: &'a Device,
    pub checkpoint: &'a Checkpoint,
    pub float_type: FloatType,
    pub progress: Progress<'p>,
    pub loaded_bytes: usize,
    dummy: DummyWeights,
}

impl<'a, 'p> WeightLoader<'a, 'p> {
    /// A loader that has loaded nothing yet.
    pub fn new(
        device: &'a Device,
        checkpoint: &'a Checkpoint,
        float_type: FloatType,
        progress: Progress<'p>,
    ) -> Self {
        Self { device, checkpoint, float_type, progress, loaded_bytes: 0, dummy: DummyWeights::default() }
    }

    /// The tensors `names`, of shape `[rows_i, cols]`, stacked into `[sum rows_i, cols]`.
    pub fn stacked(&mut self, names: &[&str], rows: &[usize], cols: usize) -> Result<Tensor> {
        let total_rows = rows.iter().sum();
        let shape = [total_rows, cols];
        self.fill(names, |i| vec![rows[i], cols], &shape)
    }

    /// The matrices `names`, both of shape `[rows, cols]`, whose rows take turns, `turn` at a time: `[2 rows, cols]`.
    pub fn in_turns(&mut self, names: [&str; 2], turn: usize, shape: &[usize]) -> Result<Tensor> {
        let rows = shape[0];
        let both = [&[2 * rows], &shape[1..]].concat();
        if self.checkpoint.is_dummy() {
            return self.made_up(&both);
        }
        let views = [self.checkpoint.get(names[0])?, self.checkpoint.get(names[1])?];
        let views = [views[0].with_shape(shape)?, views[1].with_shape(shape)?];
        if !rows.is_multiple_of(turn) {
            return Err(views[0].error(format_args!("has {rows} rows, which must be a multiple of {turn}")));
        }
        if self.checkpoint.is_rehearsal() {
            views.iter().try_for_each(|view| view.float_type().map(drop))?;
            return Ok(Tensor::without_memory(self.device, self.float_type.into(), &both));
        }
        let tensor = Tensor::uninit(self.device, self.float_type.into(), &both)?;
        let turn_bytes = turn * shape[1..].iter().product::<usize>() * self.float_type.size_in_bytes();
        let step = (BLOCK_BYTES / turn_bytes.max(1)).max(1);
        let (mut block, mut one) = (Vec::new(), vec![0; turn_bytes]);
        for start in (0..rows / turn).step_by(step) {
            block.clear();
            for index in start..(start + step).min(rows / turn) {
                for view in &views {
                    view.copy_rows_converted(index * turn..(index + 1) * turn, self.float_type, &mut one)?;
                    block.extend_from_slice(&one);
                }
            }
            tensor.write_bytes(2 * start * turn_bytes, &block)?;
        }
        let bytes = views.iter().map(|view| view.bytes.len()).sum();
        self.count(bytes);
        Ok(tensor)
    }

    /// The matrix `name` of shape `[rows, cols]`.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        self.stacked(&[name], &[rows], cols)
    }

    /// The vectors `names` one after the other.
    pub fn vector(&mut self, names: &[&str], lens: &[usize]) -> Result<Tensor> {
        let shape = [lens.iter().sum()];
        self.fill(names, |i| vec![lens[i]], &shape)
    }

    /// The weight `name` of a convolution whose kernel takes every input once (stride = size), `shape` = outputs, then what the kernel
    /// spans, as the matrix `[outputs, inputs]`; inputs padded with zeros to a multiple of 8, as 16-bit linear layers need.
    pub fn patch_matrix(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (outputs, inputs) = (shape[0], shape[1..].iter().product::<usize>());
        let padded = inputs.next_multiple_of(8);
        if self.checkpoint.is_dummy() {
            return self.made_up(&[outputs, padded]);
        }
        let view = self.checkpoint.get(name)?.with_shape(shape)?;
        if self.checkpoint.is_rehearsal() {
            view.float_type()?;
            return Ok(Tensor::without_memory(self.device, self.float_type.into(), &[outputs, padded]));
        }
        let tensor = Tensor::uninit(self.device, self.float_type.into(), &[outputs, padded])?;
        let [row_bytes, padded_bytes] = [inputs, padded].map(|len| len * self.float_type.size_in_bytes());
        let mut row = vec![0; padded_bytes];
        for output in 0..outputs {
            view.copy_rows_converted(output..output + 1, self.float_type, &mut row[..row_bytes])?;
            tensor.write_bytes(output * padded_bytes, &row)?;
        }
        self.count(view.bytes.len());
        Ok(tensor)
    }

    /// A tensor of numbers that mean nothing.
    fn made_up(&mut self, shape: &[usize]) -> Result<Tensor> {
        let dtype = self.float_type.into();
        if self.checkpoint.is_rehearsal() {
            return Ok(Tensor::without_memory(self.device, dtype, shape));
        }
        let tensor = Tensor::uninit(self.device, dtype, shape)?;
        let cols = if shape.len() > 1 { shape[shape.len() - 1] } else { 0 };
        let block = self.dummy.block(cols, self.float_type);
        let bytes = tensor.num_bytes();
        for at in (0..bytes).step_by(block.len()) {
            tensor.write_bytes(at, &block[..block.len().min(bytes - at)])?;
        }
        self.count(bytes);
        Ok(tensor)
    }

    fn count(&mut self, bytes: usize) {
        self.loaded_bytes += bytes;
        (self.progress)(self.loaded_bytes, self.checkpoint.total_bytes());
    }

    fn fill(
        &mut self,
        names: &[&str],
        shape_of: impl Fn(usize) -> Vec<usize>,
        shape: &[usize],
    ) -> Result<Tensor> {
        if self.checkpoint.is_dummy() {
            return self.made_up(shape);
        }
        if self.checkpoint.is_rehearsal() {
            for (i, name) in names.iter().enumerate() {
                self.checkpoint.get(name)?.with_shape(&shape_of(i))?.float_type()?;
            }
            return Ok(Tensor::without_memory(self.device, self.float_type.into(), shape));
        }
        let tensor = Tensor::uninit(self.device, self.float_type.into(), shape)?;
        let (mut at, mut block) = (0, Vec::new());
        for (i, name) in names.iter().enumerate() {
            let view = self.checkpoint.get(name)?.with_shape(&shape_of(i))?;
            let num_rows = view.shape.first().copied().unwrap_or(1);
            let row_elements = view.num_elements() / num_rows.max(1);
            let row_bytes = row_elements * self.float_type.size_in_bytes();
            let step = (BLOCK_BYTES / row_bytes.max(1)).max(1);
            for start in (0..num_rows).step_by(step) {
                let rows = start..(start + step).min(num_rows);
                block.resize(rows.len() * row_bytes, 0);
                view.copy_rows_converted(rows, self.float_type, &mut block)?;
                tensor.write_bytes(at, &block)?;
                at += block.len();
            }
            self.count(view.bytes.len());
        }
        Ok(tensor)
    }
}

impl From<FloatType> for DType {
    fn from(float_type: FloatType) -> Self {
        match float_type {
            FloatType::Bf16 => DType::Bf16,
            FloatType::F16 => DType::F16,
            FloatType::F32 => DType::F32,
        }
    }
}
