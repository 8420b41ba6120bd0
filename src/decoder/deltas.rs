//! Shared deltas: what tuning trains, as a side path beside frozen weights.
//!
//! A site computes `y = W x`. With shared deltas it computes `y = W x + M U x`, where `U` is `[k, hidden]` and `M` the
//! fixed 0/1 matrix that says which of the k clusters a row belongs to (NeST, section 3.4). `W + M U` is never formed.

use std::collections::BTreeMap;

use super::{Config, DecoderError, Projection, Site};

/// The rows of one site that move together, and how far each cluster of them has moved.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteDeltas {
    rows: Vec<u32>,
    clusters: Vec<u32>,
    count: usize,
    /// `[count, hidden]`, row-major.
    values: Vec<f32>,
}

impl SiteDeltas {
    /// Deltas of zero: `clusters[i]` is the cluster of `rows[i]`; `count` clusters of `hidden` numbers each.
    pub fn zero(rows: Vec<u32>, clusters: Vec<u32>, count: usize, hidden: usize) -> Self {
        Self { rows, clusters, count, values: vec![0.0; count * hidden] }
    }

    /// The rows, ascending.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The cluster of each row.
    pub fn clusters(&self) -> &[u32] {
        &self.clusters
    }

    /// The number of clusters, k.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The deltas, `[k, hidden]` row-major.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The deltas, for an optimiser.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The rows from `first` on that lie within `width`, and their clusters.
    pub(super) fn part(&self, first: u32, width: u32) -> Part<'_> {
        let place = |row: u32| self.rows.partition_point(|other| *other < row);
        let span = place(first)..place(first.saturating_add(width));
        Part {
            first,
            rows: self.rows.get(span.clone()).unwrap_or_default(),
            clusters: self.clusters.get(span).unwrap_or_default(),
        }
    }

    fn check(&self, width: u32, config: &Config) -> Result<(), (String, String)> {
        if self.rows.is_empty() || self.rows.windows(2).any(|pair| matches!(pair, [a, b] if a >= b)) {
            return Err(("ascending rows, at least one".to_owned(), format!("{:?}", self.rows)));
        }
        if let Some(row) = self.rows.iter().find(|row| **row >= width) {
            return Err((format!("rows below {width}"), format!("row {row}")));
        }
        if self.clusters.len() != self.rows.len() {
            return Err((format!("{} clusters, one a row", self.rows.len()), self.clusters.len().to_string()));
        }
        if let Some(cluster) = self.clusters.iter().find(|cluster| **cluster as usize >= self.count) {
            return Err((format!("clusters below {}", self.count), format!("cluster {cluster}")));
        }
        if self.values.len() != self.count * config.hidden {
            return Err((format!("{} x {} values", self.count, config.hidden), self.values.len().to_string()));
        }
        Ok(())
    }
}

/// Rows of a site's deltas that lie in one projection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    /// The site's row that is the projection's first.
    pub(super) first: u32,
    pub(super) rows: &'a [u32],
    pub(super) clusters: &'a [u32],
}

/// Shared deltas of several sites; the same type carries their gradient.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SharedDeltas {
    sites: BTreeMap<Site, SiteDeltas>,
}

impl SharedDeltas {
    /// Checks the deltas against the network they are for.
    ///
    /// # Errors
    /// A site, row or cluster out of range, rows not ascending, values of another size.
    pub fn new(config: &Config, sites: BTreeMap<Site, SiteDeltas>) -> Result<Self, DecoderError> {
        for (site, deltas) in &sites {
            config.site_tensor(*site)?;
            if site.projection == Projection::GateUp
                && let Some(half) = Projection::HALVES
                    .map(|half| Site::new(site.layer, half))
                    .iter()
                    .find(|half| sites.contains_key(half))
            {
                let expected = "a site of its own, since its tensor is one site".to_owned();
                return Err(DecoderError::Deltas { site: *half, expected, found: site.to_string() });
            }
            let width = config.width(site.projection) as u32;
            deltas.check(width, config).map_err(|(expected, found)| DecoderError::Deltas {
                site: *site,
                expected,
                found,
            })?;
        }
        Ok(Self { sites })
    }

    /// The deltas of a site.
    pub fn get(&self, site: Site) -> Option<&SiteDeltas> {
        self.sites.get(&site)
    }

    /// The deltas that a half of a layer's feed-forward part takes, be they of the half or of both, and which rows of them.
    pub(super) fn half(&self, site: Site, width: usize) -> Option<(&SiteDeltas, Part<'_>)> {
        let width = width as u32;
        if let Some(own) = self.get(site) {
            return Some((own, own.part(0, width)));
        }
        let both = self.get(Site::new(site.layer, Projection::GateUp))?;
        Some((both, both.part(if site.projection == Projection::Up { width } else { 0 }, width)))
    }

    /// The deltas of a site, for an optimiser.
    pub fn get_mut(&mut self, site: Site) -> Option<&mut SiteDeltas> {
        self.sites.get_mut(&site)
    }

    /// All sites in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Site, &SiteDeltas)> {
        self.sites.iter().map(|(site, deltas)| (*site, deltas))
    }

    /// All values in order of sites, for an optimiser; a gradient's [`SharedDeltas::iter`] has the same order.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.sites.values_mut().map(SiteDeltas::values_mut)
    }

    /// The lowest layer with a site; nothing below it changes while tuning.
    pub fn lowest_layer(&self) -> Option<usize> {
        self.sites.keys().next().map(|site| site.layer)
    }

    /// The number of trained parameters.
    pub fn parameters(&self) -> usize {
        self.sites.values().map(|deltas| deltas.values.len()).sum()
    }

    /// The same sites with all values zero.
    pub fn zeros_like(&self) -> Self {
        let mut zeros = self.clone();
        zeros.values_mut().for_each(|values| values.fill(0.0));
        zeros
    }
}
