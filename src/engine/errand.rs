//! [`Errand`]: what the host does for others while the device is busy.

/// Something to be done once in a step, as soon as the device has something to do.
pub(super) struct Errand<'a>(Option<&'a mut dyn FnMut()>);

impl<'a> Errand<'a> {
    pub fn new(errand: &'a mut dyn FnMut()) -> Self {
        Self(Some(errand))
    }

    /// Nothing to do.
    pub fn none() -> Self {
        Self(None)
    }

    /// Does it, if it has not been done.
    pub fn run(&mut self) {
        if let Some(errand) = self.0.take() {
            errand();
        }
    }
}
