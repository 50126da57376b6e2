//! Lists that the driver writes, walked as a controller walks them.

use nvme::{
    PrpError, PrpList,
    model::{ModelDoor, Traits, walk},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Data of every size around the borders of pages and lists, at random places: each byte is found, and nothing else.
#[test]
fn every_byte_is_found_where_it_is() {
    for page in [4096, 16384] {
        let door = ModelDoor::new(Traits::default(), vec![]);
        let per_page = page / 8;
        let pages =
            [0, 1, 2, 3, per_page - 1, per_page, per_page + 1, per_page + 2, 2 * per_page - 1, 2 * per_page + 1];
        let longest = (pages.iter().max().unwrap() + 2) * page;
        let data = door.allocate_runs(longest, page);
        let list_pages = PrpList::pages_for(longest, page);
        let list = PrpList::new(door.allocate_runs(list_pages * page, page), 0, list_pages);
        let mut rng = SmallRng::seed_from_u64(7);
        for pages in pages {
            for _ in 0..40 {
                let start = [0, page - 4, 4 * rng.random_range(0..page / 4)][rng.random_range(0..3)];
                let len = (pages * page + [0, 1, page - 1, rng.random_range(0..page)][rng.random_range(0..4)]).max(1);
                let prps = list.describe(data.bus(), start, len, page).unwrap();
                let pieces = walk(door.bus(), prps, len, page).unwrap();
                let mut at = start;
                for &(address, bytes) in &pieces {
                    assert_eq!(data.bus().contiguous(at, bytes), Some(address), "{pages} pages, {start} + {len}");
                    at += bytes;
                }
                assert_eq!(at, start + len);
            }
        }
        assert_eq!(door.bus().misses(), 0);
    }
}

/// The number of list pages is exact: one fewer is too few for data that needs it.
#[test]
fn lists_are_as_long_as_they_have_to_be() {
    let page = 4096;
    let door = ModelDoor::new(Traits::default(), vec![]);
    for (data_pages, list_pages) in [(1, 1), (512, 1), (513, 2), (1023, 2), (1024, 3), (1534, 3), (1535, 4)] {
        // As unaligned data needs it: each page but the first is in the list, and there is one more.
        let len = data_pages * page;
        assert_eq!(PrpList::pages_for(len, page), list_pages, "{data_pages} pages");
        let data = door.allocate_runs(len + page, page);
        let list = |pages: usize| PrpList::new(door.allocate_runs(pages * page, page), 0, pages);
        list(list_pages).describe(data.bus(), 4, len, page).unwrap();
        if list_pages > 1 {
            let error = list(list_pages - 1).describe(data.bus(), 4, len, page).unwrap_err();
            assert!(matches!(error, PrpError::ListFull { need, .. } if need == data_pages), "{error}");
        }
    }
}

#[test]
fn what_cannot_be_described_is_refused() {
    let door = ModelDoor::new(Traits::default(), vec![]);
    let data = door.allocate_runs(16384, 4096);
    let list = PrpList::new(door.allocate_runs(4096, 4096), 0, 1);
    let describe = |at, len, page| list.describe(data.bus(), at, len, page).unwrap_err().to_string();
    assert_eq!(describe(16380, 8, 4096), "bytes 16380..16388 are outside of memory of 16384 bytes");
    assert!(describe(usize::MAX, 1, 4096).contains("outside") && describe(0, 0, 4096).contains("outside"));
    assert!(describe(2, 8, 4096).contains("no multiple of 4"));
    // Pages of the bus are smaller than the controller's.
    assert!(describe(0, 16384, 8192).contains("not whole pages of 8192 bytes"));
}
