//! AdamW in f32 (Loshchilov and Hutter, 2019).

/// Decay of the mean of gradients.
const BETA_1: f32 = 0.9;
/// Decay of the mean of squared gradients.
const BETA_2: f32 = 0.999;
/// Keeps the step finite where a gradient has always been zero.
const EPSILON: f32 = 1e-8;

/// The optimiser's memory: two numbers per trained parameter.
#[derive(Debug, Clone, Default)]
pub(super) struct AdamW {
    moments: Vec<[f32; 2]>,
    steps: i32,
    decay: f32,
}

impl AdamW {
    /// A fresh optimiser with weight decay `decay`.
    pub(super) fn new(decay: f32) -> Self {
        Self { moments: Vec::new(), steps: 0, decay }
    }

    /// The moments, two a parameter, and how many steps they are of.
    pub(super) fn memory(&self) -> (&[f32], i32) {
        (self.moments.as_flattened(), self.steps)
    }

    /// An optimiser with the memory of another.
    pub(super) fn restored(moments: &[f32], steps: i32, decay: f32) -> Self {
        Self { moments: moments.as_chunks().0.to_vec(), steps, decay }
    }

    /// One step at learning rate `rate`; `pairs` gives the parameters and their gradients, always in the same order.
    pub(super) fn step<'a>(&mut self, pairs: impl Iterator<Item = (&'a mut f32, f32)>, rate: f32) {
        self.steps += 1;
        let (unbias_1, unbias_2) = (1.0 - BETA_1.powi(self.steps), 1.0 - BETA_2.powi(self.steps));
        for (index, (parameter, gradient)) in pairs.enumerate() {
            if index == self.moments.len() {
                self.moments.push([0.0; 2]);
            }
            let Some([first, second]) = self.moments.get_mut(index) else { return };
            *first = BETA_1 * *first + (1.0 - BETA_1) * gradient;
            *second = BETA_2 * *second + (1.0 - BETA_2) * gradient * gradient;
            *parameter -= rate * self.decay * *parameter;
            *parameter -= rate * (*first / unbias_1) / ((*second / unbias_2).sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_steps_by_hand() {
        // The reference is PyTorch's formula in f64.
        let (mut adam, mut parameter) = (AdamW::new(0.1), 1.0_f32);
        let (mut expected, mut m, mut v) = (1.0_f64, 0.0_f64, 0.0_f64);
        for (step, gradient) in [(1, 0.5_f64), (2, -0.2), (3, 0.9)] {
            adam.step([(&mut parameter, gradient as f32)].into_iter(), 0.01);
            m = 0.9 * m + 0.1 * gradient;
            v = 0.999 * v + 0.001 * gradient * gradient;
            expected *= 1.0 - 0.01 * 0.1;
            expected -= 0.01 * (m / (1.0 - 0.9_f64.powi(step))) / ((v / (1.0 - 0.999_f64.powi(step))).sqrt() + 1e-8);
        }
        assert!((f64::from(parameter) - expected).abs() < 1e-6, "{parameter} {expected}");
    }
}
