use super::GbnfError;
pub(super) fn to_lark(text: &str) -> Result<String, GbnfError> {
    Ok(text.to_owned())
}
