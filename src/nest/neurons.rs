//! Safety neurons: the rows whose probe weight stands out (section 3.3 of the paper).

use super::NestError;
use super::params::{Params, Valid, within};

/// How far a weight must stand out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NeuronParams {
    /// The smallest z-score kept, exclusive: 0 to 10. The paper's is 3; it also tried 2 and 4.
    pub threshold: f64,
}

impl Default for NeuronParams {
    fn default() -> Self {
        Self { threshold: 2.0 }
    }
}

impl Params for NeuronParams {
    fn check(self) -> Result<Valid<Self>, NestError> {
        within("threshold", self.threshold, 0.0..=10.0)?;
        Ok(Valid::new(self))
    }
}

/// The rows of a site with z > threshold and a positive weight, ascending.
///
/// The z-score is over the site's d_ff weights with the population standard deviation. Weights that are all equal (or
/// not numbers) select nothing.
pub fn select(weights: &[f32], params: &Valid<NeuronParams>) -> Vec<u32> {
    let count = weights.len() as f64;
    let mean = weights.iter().copied().map(f64::from).sum::<f64>() / count;
    let variance = weights.iter().map(|weight| (f64::from(*weight) - mean).powi(2)).sum::<f64>() / count;
    let deviation = variance.sqrt();
    let stands_out = |weight: f32| weight > 0.0 && (f64::from(weight) - mean) / deviation > params.threshold;
    let chosen = (0_u32..).zip(weights).filter(|(_, weight)| stands_out(**weight));
    chosen.map(|(row, _)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(weights: &[f32], threshold: f64) -> Vec<u32> {
        select(weights, &NeuronParams { threshold }.check().unwrap())
    }

    #[test]
    fn keeps_what_stands_out_upwards() {
        let mut weights = vec![0.0; 100];
        weights[40] = 5.0;
        weights[7] = 4.0;
        weights[9] = -5.0;
        assert_eq!(chosen(&weights, 3.0), [7, 40]);
        // Mean 0.04, population deviation 0.81: z is 6.1 and 4.9.
        assert_eq!(chosen(&weights, 5.0), [40]);
        assert!(chosen(&weights, 7.0).is_empty());
    }

    #[test]
    fn a_negative_weight_is_never_kept() {
        let mut weights = vec![-1.0; 100];
        weights[3] = -0.5;
        assert!(chosen(&weights, 3.0).is_empty());
    }

    #[test]
    fn equal_weights_and_no_weights_select_nothing() {
        assert!(chosen(&[1.0; 50], 0.0).is_empty());
        assert!(chosen(&[], 0.0).is_empty());
        assert!(chosen(&[f32::NAN, 1.0], 0.0).is_empty());
    }
}
