//! The Apache Traffic Server plugin of resumed.
